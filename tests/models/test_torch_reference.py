"""The interpreter itself: chunking, block bookkeeping, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import prompt
from pyrite.backends.torch_ref import SequencePlan, TorchReference, run_sequence
from pyrite.errors import BackendError, InternalError
from pyrite.models import load_config, record
from pyrite.weights.reader import Weights
from tiny_models import FAMILIES, SafetensorsSource, tiny


def setup(family: str = "muse_glimmer"):
    folder = tiny(family)
    return record(load_config(folder)), Weights(SafetensorsSource(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_chunking_and_block_size_change_no_bit(family):
    program, weights = setup(family)
    ids = prompt(41)
    whole = run_sequence(program, weights, ids)
    for chunks, block_size in (([1] * 41, 16), ([7, 20, 1, 13], 32), ([40, 1], 1)):
        assert np.array_equal(run_sequence(program, weights, ids, chunks, block_size=block_size), whole)


def test_f64_agrees_with_f32():
    program, weights = setup()
    ids = prompt(30)
    narrow = run_sequence(program, weights, ids)
    assert np.abs(run_sequence(program, weights, ids, dtype=torch.float64) - narrow).max() < 1e-4


class TwoSequences:
    """Two sequences in one step, their blocks interleaved and out of order, the first one's table copied before."""

    def __init__(self, a: list[int], b: list[int], tables: list[list[int]], copies: list[tuple[int, int]]) -> None:
        self.token_ids = np.array(a + b, np.int32)
        self.positions = np.array([*range(len(a)), *range(len(b))], np.int32)
        self.cu_seqlens_q = np.array([0, len(a), len(a) + len(b)], np.int32)
        self.seq_lens = np.array([len(a), len(b)], np.int32)
        self.logit_rows = np.array([len(a) - 1, len(a) + len(b) - 1], np.int32)
        self.tables, self.copies = np.array(tables, np.int32), copies

    def block_table(self, group: int) -> np.ndarray:
        return self.tables

    def slot_mapping(self, group: int) -> np.ndarray:
        seqs = [0] * self.seq_lens[0] + [1] * self.seq_lens[1]
        return np.array(
            [self.tables[s, p // 4] * 4 + p % 4 for s, p in zip(seqs, self.positions, strict=True)], np.int32
        )

    def block_copies(self, group: int) -> list[tuple[int, int]]:
        return self.copies


def test_sequences_in_one_step_do_not_meet():
    program, weights = setup()
    a, b = prompt(10, 1), prompt(7, 2)
    backend = TorchReference(program, weights, block_size=4, num_blocks=[6, 6])
    got = backend.run(TwoSequences(a, b, [[5, 0, 3], [2, 4, -1]], []))
    assert np.array_equal(got[0], run_sequence(program, weights, a)[-1])
    assert np.array_equal(got[1], run_sequence(program, weights, b)[-1])


def test_block_copies_happen_first():
    program, weights = setup()
    ids = prompt(6)
    backend = TorchReference(program, weights, block_size=8, num_blocks=[2, 2])
    backend.run(SequencePlan(ids[:5], 0, [None, None], 8))

    class Forked(SequencePlan):
        def block_table(self, group):
            return np.array([[1]], np.int32)

        def slot_mapping(self, group):
            return self.positions + 8

        def block_copies(self, group):
            return [(0, 1)]

    got = backend.run(Forked(ids[5:], 5, [None, None], 8))
    assert np.array_equal(got[0], run_sequence(program, weights, ids)[-1])


def test_a_slot_of_minus_one_stores_nothing():
    program, weights = setup()
    backend = TorchReference(program, weights, block_size=8, num_blocks=[1, 1])

    class Unstored(SequencePlan):
        def slot_mapping(self, group):
            return np.full(len(self.token_ids), -1, np.int32)

    assert np.isnan(backend.run(Unstored(prompt(3), 0, [None, None], 8))).all()


@pytest.mark.parametrize(
    ("table", "slots"),
    [([[-1]], [0]), ([[]], [0]), ([[0]], [99]), ([[0]], [-2])],
    ids=["hole", "short", "slot", "negative"],
)
def test_wrong_bookkeeping_is_an_error(table, slots):
    program, weights = setup()
    backend = TorchReference(program, weights, block_size=8, num_blocks=[1, 1])

    class Wrong(SequencePlan):
        def block_table(self, group):
            return np.array(table, np.int32)

        def slot_mapping(self, group):
            return np.array(slots, np.int32)

    with pytest.raises(InternalError):
        backend.run(Wrong(prompt(1), 0, [None, None], 8))


def test_close_is_idempotent_and_final():
    program, weights = setup()
    backend = TorchReference(program, weights, block_size=8, num_blocks=[1, 1])
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.run(SequencePlan(prompt(1), 0, [None, None], 8))


def test_a_run_leaves_the_thread_count_alone():
    program, weights = setup()
    before = torch.get_num_threads()
    run_sequence(program, weights, prompt(2))
    assert torch.get_num_threads() == before
