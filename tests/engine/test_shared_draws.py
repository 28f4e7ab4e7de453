"""Draws that the CPU backend's threads share: the tokens of one thread, and faults that stay with their rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from pyrite import _core
from pyrite.backends.base import SamplingBackend
from pyrite.backends.cpu import CpuBackend
from pyrite.errors import PyriteError
from pyrite.memory import open_for
from pyrite.settings import EngineConfig
from tiny_models import tiny

ROWS, WIDTH = 23, 5000
SETTINGS = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 50, "min_p": 0.01, "logprobs": 3},
]


@pytest.fixture(scope="module")
def backend() -> Iterator[CpuBackend]:
    folder = tiny("llama")
    made = CpuBackend(
        open_for(folder, EngineConfig()).program,
        _core.open_checkpoint(str(folder)),
        block_size=32,
        num_blocks=[4],
        max_tokens=8,
        max_rows=8,
        max_seqs=4,
        kv_dtype="float32",
        num_threads=3,
    )
    yield made
    made.close()


def logits() -> np.ndarray:
    return np.random.default_rng(5).normal(0, 3, (ROWS, WIDTH)).astype(np.float32)


def requests(count: int) -> list[tuple[int, _core.Sampler, int]]:
    neutral = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "logprobs": None}
    makers = [neutral | settings for settings in SETTINGS]
    sampler = [_core.Sampler(**maker, seed=9, stream=i, vocab_limit=WIDTH - 7) for i, maker in enumerate(makers)]
    return [(row, sampler[row % len(sampler)], 100 + row) for row in range(count)]


def facts(samples: list[_core.Sample | None]) -> list[tuple | None]:
    return [s and (s.token_id, s.logprob, s.rank, s.top) for s in samples]


@pytest.mark.parametrize("count", [0, 1, 2, 3, ROWS])
def test_threads_draw_what_one_thread_draws(backend: CpuBackend, count: int) -> None:
    assert isinstance(backend, SamplingBackend)
    rows = logits()
    for _ in range(5):
        assert facts(backend.sample(rows, requests(count))) == facts(_core.sample(rows, requests(count)))


def test_a_row_without_finite_logits_fails_alone(backend: CpuBackend) -> None:
    rows = logits()
    rows[3], rows[10, 17] = -np.inf, np.nan
    drawn = facts(backend.sample(rows, requests(ROWS)))
    assert [row for row, sample in enumerate(drawn) if sample is None] == [3, 10]
    assert drawn == facts(_core.sample(rows, requests(ROWS)))


def test_what_cannot_be_drawn_is_refused_and_leaves_the_threads_usable(backend: CpuBackend) -> None:
    rows, (first, *rest) = logits(), requests(ROWS)
    with pytest.raises(PyriteError, match="no such row"):
        backend.sample(rows, [*rest, (ROWS, *first[1:])])
    with pytest.raises(PyriteError, match="position"):
        backend.sample(rows, [*rest, (*first[:2], 2**32)])
    assert facts(backend.sample(rows, [first, *rest])) == facts(_core.sample(rows, requests(ROWS)))
