"""Whole models with integer weights: the CPU against the oracle, and the oracle against what it stands for.

The two compute the same integers from the same activations, and differ in the last bits of what lies between two
matmuls. Where such a bit decides whether an activation rounds to one int8 code or the next, all that follows moves by
a share of that step; so nearly all rows agree to the last digits, and the others to about a code's worth.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import prompt
from pyrite import _core
from pyrite.backends.torch_ref import run_sequence
from pyrite.models import load_config, record
from pyrite.models.quantize import assign_schemes
from pyrite.quant.schemes import quantization
from pyrite.weights.reader import Weights
from quantizable import QUANTIZABLE, quantizable
from runners import run_cpu, run_reference
from tiny_models import WINDOW, SafetensorsSource

SAME = 1e-4
"""Logits have a standard deviation of 0.6 to 3. Measured where no code flips: at most 5e-6."""
FLIPPED = 0.6
"""Measured where one does: at most 0.3."""
ISAS = _core.cpu_info()["isa_levels"]


def program_of(name: str, scheme: str):
    return assign_schemes(record(load_config(quantizable(name))), quantization(scheme))


@pytest.mark.parametrize("scheme", ["int4", "int8", "int4_g64_asym", "int4_g128_head4"])
@pytest.mark.parametrize("name", QUANTIZABLE)
def test_the_cpu_gives_the_oracles_logits(name, scheme):
    program, folder = program_of(name, scheme), quantizable(name)
    prompts = [prompt(length, seed) for length in (1, 3, 7) for seed in range(4)]
    differences = []
    for ids in [*prompts, prompt(2 * WINDOW + 6)]:
        expected = run_reference(program, folder, ids, [len(ids)])
        got = run_cpu(program, folder, ids, [max(1, len(ids) // 2)])
        differences.append(np.abs(got - expected).max(-1))
    assert np.concatenate(differences).max() <= FLIPPED
    assert (np.concatenate(differences[:-1]) <= SAME).mean() >= 0.7


@pytest.mark.parametrize("name", QUANTIZABLE)
def test_levels_of_the_processor_agree(name):
    program, folder, ids = program_of(name, "int4"), quantizable(name), prompt(24)
    answers = [run_cpu(program, folder, ids, [7], isa=isa) for isa in ISAS]
    for got in answers[1:]:
        difference = np.abs(got - answers[0]).max(-1)
        assert difference.max() <= FLIPPED and (difference <= SAME).mean() >= 0.5


def test_float_inputs_are_those_of_the_dequantized_model():
    folder, ids = quantizable("qwen3_tied"), prompt(20)
    weights = Weights(SafetensorsSource(folder))
    program = program_of("qwen3_tied", "int4")
    got = run_sequence(program, weights, ids, quantized_inputs="float")
    integers = run_sequence(program, weights, ids)
    wide = run_sequence(program, weights, ids, quantized_inputs="float", dtype=torch.float64)
    original = run_sequence(record(load_config(folder)), weights, ids)
    assert np.abs(got - wide).max() < 1e-4
    # Rounding inputs to int8 costs much less than rounding weights to 4 bits.
    assert 0 < np.abs(integers - got).max() < 0.5 * np.abs(got - original).max()
