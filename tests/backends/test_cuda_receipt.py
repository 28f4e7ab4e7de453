"""The receipt's way to whole rows of logits, on a backend that keeps them on its device."""

from __future__ import annotations

import numpy as np
from plans import MAX_TOKENS, Rig, cuda_backend, program_of, prompt
from pyrite.backends.torch_ref import run_sequence
from pyrite.receipt import EngineRows
from pyrite.weights.reader import Weights
from quantizable import quantizable
from tiny_models import VOCAB_SIZE, SafetensorsSource


def test_rows_are_the_references() -> None:
    folder, ids = quantizable("qwen3_tied", num_hidden_layers=1), prompt(MAX_TOKENS + 1)  # two steps
    weights = Weights(SafetensorsSource(folder))
    expected = run_sequence(program_of(folder, "int4"), weights, ids, quantized_inputs="float")[:-1]
    with Rig(folder, cuda_backend(folder, "int4")) as rig:
        rows = EngineRows(rig.engine, rig.gate, VOCAB_SIZE)(ids)
    assert np.abs(rows - expected).max() < 5e-4
