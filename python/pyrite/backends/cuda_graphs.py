"""Decode steps captured in CUDA graphs, one per shape, at the shape's first use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

Tensors = TypeVar("Tensors")

_logger = logging.getLogger("pyrite")


class StepGraphs:
    """Runs a function by replaying what it launched at its first call of that shape.

    What it reads and writes must lie at the same addresses at every call of a shape, and it may not wait for the
    device. All graphs share one memory pool, since only one runs at a time. Where capturing fails, shapes run eagerly
    from then on, with one line in the log.
    """

    def __init__(self) -> None:
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Any]] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._broken = False

    def __len__(self) -> int:
        """How many shapes are captured."""
        return len(self._graphs)

    def run(self, shape: Hashable, function: Callable[[], Tensors]) -> Tensors:
        """The tensors of `function`, which must depend on nothing but the content of device memory and `shape`."""
        if shape in self._graphs:
            graph, result = self._graphs[shape]
            graph.replay()
            return result
        result = function()  # compiles kernels and is the answer of this step: capturing runs nothing
        if not self._broken:
            torch.cuda.current_stream().synchronize()
            try:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                    captured = function()
                self._graphs[shape] = graph, captured
            except Exception as error:  # a kernel that synchronises, or a driver without graphs
                self._broken = True
                _logger.warning("decode steps run without CUDA graphs: %s", error)
        return result

    def close(self) -> None:
        """Free the graphs and their memory."""
        self._graphs.clear()
