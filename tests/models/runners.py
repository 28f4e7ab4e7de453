"""Every way to get the logits of a whole sequence, by backend: the parameter of the parity tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pyrite.backends.torch_ref import run_sequence
from pyrite.models import Program
from pyrite.weights.reader import Weights
from tiny_models import SafetensorsSource

Runner = Callable[[Program, Path, Sequence[int], Sequence[int]], np.ndarray]
"""(program, folder, token ids, tokens per step) -> logits [len(token ids), vocab_size] f32."""


def run_reference(program: Program, folder: Path, token_ids: Sequence[int], chunks: Sequence[int]) -> np.ndarray:
    """The torch interpreter, on bytes read without pyrite."""
    return run_sequence(program, Weights(SafetensorsSource(folder)), token_ids, chunks)


RUNNERS: dict[str, Runner] = {"torch_ref": run_reference}
