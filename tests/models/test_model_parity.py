"""Logits and greedy tokens of every family against transformers, on every backend."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from oracle import log_softmax, oracle_greedy, oracle_logprobs, prompt
from pyrite.models import load_config, record
from runners import RUNNERS, run_cpu, run_reference
from tiny_models import ORDINARY_IDS, WINDOW, tiny
from variants import VARIANTS

TOLERANCE = 1e-3  # measured: at most 2.4e-5
LENGTHS = (1, 37, 3 * WINDOW + 9)


def chunked(length: int) -> list[int]:
    """Uneven steps, decodes of one token among them."""
    chunks: list[int] = []
    for size in (5, 1, 1, 16, 3, 33, 1):
        chunks.append(min(size, length - sum(chunks)))
        if sum(chunks) == length:
            return chunks
    return [*chunks, length - sum(chunks)]


@pytest.mark.parametrize("backend", RUNNERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logprobs_match_transformers(variant, backend):
    family, overrides = VARIANTS[variant]
    folder = tiny(family, **overrides)
    program = record(load_config(folder, strict=True))
    for length in LENGTHS:
        ids = prompt(length)
        expected = oracle_logprobs(folder, ids)
        got = log_softmax(RUNNERS[backend](program, folder, ids, chunked(length)))
        assert np.abs(got - expected).max() <= TOLERANCE
        assert (got.argmax(-1) == expected.argmax(-1)).all()


@pytest.mark.parametrize("backend", RUNNERS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "muse_glimmer"])
def test_greedy_tokens_match_transformers(family, backend):
    folder = tiny(family)
    ids, count = prompt(WINDOW + 5), 40
    expected = oracle_greedy(folder, ids, count)
    program = record(load_config(folder))
    whole = ids + expected[:-1]
    logits = RUNNERS[backend](program, folder, whole, [len(ids)] + [1] * (count - 1))
    ordinary = logits[len(ids) - 1 :, ORDINARY_IDS.start : ORDINARY_IDS.stop]
    assert (ORDINARY_IDS.start + ordinary.argmax(-1)).tolist() == expected


# Below the level avx512bf16, which rounds the inputs of bf16 matmuls, f16 and bf16 weights are exact numbers.
EXACT_RUNNERS = {"torch_ref": run_reference, "cpu": functools.partial(run_cpu, isa="scalar")}


@pytest.mark.parametrize("backend", EXACT_RUNNERS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "muse_glimmer"])
def test_narrow_weights_are_widened_exactly(family, dtype, backend):
    folder = tiny(family, dtype=dtype)
    ids = prompt(40)
    got = log_softmax(EXACT_RUNNERS[backend](record(load_config(folder)), folder, ids, [40]))
    assert np.abs(got - oracle_logprobs(folder, ids)).max() <= TOLERANCE
