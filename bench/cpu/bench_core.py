"""The Rust core through Python: sampling, scheduling, headers. Run by `make bench`."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyrite
import pytest
from pyrite import _core

VOCAB = 151_936
STARTER = Path(pyrite.__file__).parent / "starter"


def _sampler(**changes: Any) -> _core.Sampler:
    neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 1, "stream": 0, "logprobs": None}
    return _core.Sampler(vocab_limit=VOCAB, **{**neutral, **changes})


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    """One row of a model that is fairly sure of itself."""
    return np.random.default_rng(0).normal(0.0, 3.0, (1, VOCAB)).astype(np.float32)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"temperature": 0.0}, id="greedy"),
        pytest.param({}, id="unfiltered"),
        pytest.param({"top_k": 50}, id="top_k"),
        pytest.param({"top_p": 0.95}, id="top_p"),
        pytest.param({"min_p": 0.05}, id="min_p"),
        pytest.param({"temperature": 0.7, "top_k": 64, "top_p": 0.95, "logprobs": 5}, id="all_with_logprobs"),
    ],
)
def test_sample_row(benchmark: Any, logits: np.ndarray, settings: dict[str, Any]) -> None:
    sampler = _sampler(**settings)
    position = itertools.count()
    benchmark(lambda: _core.sample(logits, [(0, sampler, next(position))]))


@pytest.mark.parametrize("num_seqs", [1, 16, 64])
def test_decode_step_of_the_scheduler(benchmark: Any, num_seqs: int) -> None:
    """plan + commit with everybody decoding, 200 tokens each in the cache."""
    scheduler = _core.Scheduler(
        groups=[(None, 64 * 256)],
        block_size=32,
        max_num_seqs=num_seqs,
        max_num_batched_tokens=1 << 16,
        max_logit_rows=num_seqs,
        max_model_len=1 << 17,
        enable_prefix_caching=True,
        hash_key=1,
    )
    for seq_id in range(num_seqs):
        prompt = [seq_id + 1] * 200
        scheduler.add(seq_id, prompt, max_tokens=1 << 16, stop_token_ids=[], prompt_logprobs=False, salt=b"")

    def step() -> None:
        plan = scheduler.plan()
        assert plan is not None
        scheduler.commit(plan, [(seq_id, epoch, [7]) for seq_id, epoch, _, _ in plan.seqs])

    step()
    benchmark.pedantic(step, rounds=200, iterations=5)


def test_open_checkpoint(benchmark: Any) -> None:
    benchmark(_core.open_checkpoint, str(STARTER))


@pytest.mark.parametrize("num_threads", [1, 2])
def test_read_bandwidth(benchmark: Any, num_threads: int) -> None:
    """The roof of decode: GB/s of a sequential read, in `extra_info`."""
    benchmark.extra_info["gb_s"] = benchmark.pedantic(_core.read_bandwidth, args=(1 << 29, num_threads, 5), rounds=1)
