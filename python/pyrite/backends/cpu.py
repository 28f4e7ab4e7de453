"""The CPU backend: hands the program to the Rust executor once; each step is then a single call into it."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrite import _core
from pyrite.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyrite.models.program import Parameter, Program


_logger = logging.getLogger("pyrite")


def matrix_bytes(parameter: Parameter, dtype: str) -> int:
    """Bytes that the executor will hold for a matrix, padding included.

    Args:
        dtype: "float32", "float16" or "bfloat16", of a matrix without a scheme.
    """
    quant = parameter.quant
    rows, cols = parameter.shape
    form = None if quant is None else (quant.bits, quant.group_size, quant.symmetric, quant.groups_per_scale)
    return _core.matrix_bytes(rows, cols, dtype=dtype, quant=form)


class CpuBackend:
    """Implements `SamplingBackend` on `_core.CpuExecutor`.

    Args:
        program: the recorded model, with its slots assigned.
        checkpoint: validated headers of the model folder.
        num_blocks: KV blocks per group of the program.
        max_tokens, max_rows, max_seqs: the largest T, R and S of a step.
        kv_dtype: "float32", "float16", "bfloat16", "int16" or "int8".
        weight_dtype: dtype that matrices without a scheme are converted to; None keeps the checkpoint's.
        num_threads: workers, the calling thread included.
        isa: forced instruction level; None takes the best one of this processor.
        progress: called with (bytes done, bytes in all) while weights load.
        packed_folder: where quantized weights are kept as the executor holds them. Without the right file there, the
            first load writes one: into the system's file cache before it returns, and from there to the disk on a
            thread of its own, which `close` and the end of the process wait for. Trouble with it is logged, no more.

    Raises:
        CheckpointError: a tensor is missing, of the wrong shape or dtype, or to be quantized and not finite.
        CapacityError: weights, KV blocks or scratch do not fit in memory.
    """

    def __init__(
        self,
        program: Program,
        checkpoint: _core.Checkpoint,
        *,
        block_size: int,
        num_blocks: Sequence[int],
        max_tokens: int,
        max_rows: int,
        max_seqs: int,
        kv_dtype: str,
        weight_dtype: str | None = None,
        num_threads: int = 1,
        isa: str | None = None,
        progress: Callable[[int, int], None] | None = None,
        packed_folder: str | None = None,
    ) -> None:
        self._executor: _core.CpuExecutor | None = _core.CpuExecutor(
            program.to_json(),
            checkpoint,
            block_size=block_size,
            num_blocks=num_blocks,
            max_tokens=max_tokens,
            max_rows=max_rows,
            max_seqs=max_seqs,
            kv_dtype=kv_dtype,
            weight_dtype=weight_dtype,
            num_threads=num_threads,
            isa=isa,
            progress=progress,
            packed_folder=packed_folder,
        )
        self._publisher = _publish(self._executor)
        # Pages of rows that no step asks for are never touched, so a large vocabulary costs only address space.
        self._logits = np.empty((max_rows, program.vocab_size), dtype=np.float32)

    def run(self, plan: _core.StepPlan) -> np.ndarray:
        """See `Backend.run`."""
        self._open().run(plan, self._logits)
        return self._logits[: len(plan.logit_rows)]

    def sample(
        self, logits: np.ndarray, requests: Sequence[tuple[int, _core.Sampler, int]]
    ) -> list[_core.Sample | None]:
        """See `SamplingBackend.sample`."""
        return self._open().sample(logits, requests)

    def info(self) -> dict[str, object]:
        """Instruction level, threads, bytes of weights, KV blocks and scratch, and `from_packed_file`."""
        return self._open().info()

    def start_profile(self) -> None:
        """Measure every step from here on, from zero."""
        self._open().start_profile()

    def end_profile(self) -> list[dict[str, Any]]:
        """What the steps since `start_profile` took; see `_core.CpuExecutor.end_profile`."""
        return self._open().end_profile()

    def _open(self) -> _core.CpuExecutor:
        if self._executor is None:
            raise BackendError("the backend is closed")
        return self._executor

    def close(self) -> None:
        """Free weights, KV blocks and threads; wait until a packed file is on the disk. Idempotent."""
        self._executor = None
        if self._publisher is not None:
            self._publisher.join()
            self._publisher = None
        self._logits = np.empty((0, 0), dtype=np.float32)


def _publish(executor: _core.CpuExecutor) -> threading.Thread | None:
    """Log what the load noted about packed files, and start a thread that brings a new one to the disk."""
    notes, file = executor.take_packed_notes()
    for what, why, is_normal in notes:
        _logger.log(logging.INFO if is_normal else logging.WARNING, "packed file of the weights %s: %s", what, why)
    if file is None:
        return None

    def publish() -> None:
        why = file.publish()
        if why is not None:
            _logger.warning("packed file of the weights not written: %s", why)

    thread = threading.Thread(target=publish, name="pyrite-packed-file")
    try:
        thread.start()
    except RuntimeError:  # no more threads
        publish()
        return None
    return thread
