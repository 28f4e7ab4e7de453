"""`ragged_prefill` against its twin, its bits over chunks and batches, and faults that the comparison must catch."""

from __future__ import annotations

import itertools

import pytest
import torch
from pyrite_kernels import ragged_prefill
from pyrite_kernels.ragged_prefill import reference
from pyrite_kernels.ragged_prefill.cases import CASES, AttentionCase, AttentionInputs, make_inputs
from pyrite_kernels.testing import assert_close, device, poisoned

BY_NAME = {case.name: case for case in CASES}


def bounds(case: AttentionCase) -> dict[str, float]:
    """f32 differs by the order of sums; f16 by the rounding of probabilities and of the output."""
    small = case.dtype == torch.float32
    return {"max_error": 2e-5, "rms_error": 2e-6} if small else {"max_error": 8e-3, "rms_error": 8e-4}


def check(case: AttentionCase, expected: AttentionInputs | None = None, **changed: object) -> None:
    """Compare the kernel with the twin, which may be given other inputs to plant a fault."""
    x = make_inputs(case)
    got = ragged_prefill(*x.prefill(), **x.options, out=poisoned(x.q.shape, x.q.dtype))
    y = expected or x
    want = reference.ragged_prefill(*y.prefill(), **(y.options | changed))
    assert_close(got, want, **bounds(case))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_parity(case: AttentionCase) -> None:
    check(case)


def test_an_off_by_one_in_the_window_is_caught() -> None:
    case = BY_NAME["window"]
    for wrong in (case.window - 1, case.window + 1):
        x = make_inputs(AttentionCase("window", case.sequences, 4, 2, window=case.window + 1))
        x.options["window"] = case.window
        got = ragged_prefill(*x.prefill(), **x.options)
        assert_close(got, reference.ragged_prefill(*x.prefill(), **x.options), **bounds(case))
        with pytest.raises(AssertionError, match="max error"):
            assert_close(got, reference.ragged_prefill(*x.prefill(), **(x.options | {"window": wrong})), **bounds(case))


def test_a_missing_mask_at_the_tail_is_caught() -> None:
    case = BY_NAME["cached_prefix"]
    x = make_inputs(case)
    for cache in (x.k_cache, x.v_cache):
        cache.nan_to_num_(1.0)  # finite numbers past the tail: only the mask keeps them out
    got = ragged_prefill(*x.prefill(), **x.options)
    assert_close(got, reference.ragged_prefill(*x.prefill(), **x.options), **bounds(case))
    longer = (*x.prefill()[:5], x.seq_lens + 1)  # every query sees one key too many
    with pytest.raises(AssertionError, match="max error"):
        assert_close(got, reference.ragged_prefill(*longer, **x.options), **bounds(case))


def test_a_swapped_page_is_caught() -> None:
    case = BY_NAME["cached_prefix"]
    wrong = make_inputs(case)
    wrong.block_table[0, :2] = wrong.block_table[0, :2].flip(0)
    check(case, wrong)  # both pages are full and seen by all: as a set of keys nothing changed
    wrong.block_table[0, 0] = wrong.block_table[1, 0]
    with pytest.raises(AssertionError, match="max error"):
        check(case, wrong)


@pytest.mark.parametrize("name", ["three_splits", "window", "all", "sinks"])
def test_a_row_has_the_same_bits_in_every_chunking_and_batch(name: str) -> None:
    x = make_inputs(BY_NAME[name])
    whole = ragged_prefill(*x.prefill(), **x.options)
    starts, length = x.cu_seqlens_q.tolist(), int(x.seq_lens[0])
    cuts = [0, 1, starts[1] // 2, starts[1]]
    for lo, hi in itertools.pairwise(cuts):  # the first sequence alone, chunk by chunk
        chunk = ragged_prefill(
            x.q[lo:hi],
            x.k_cache,
            x.v_cache,
            x.block_table[:1],
            torch.tensor([0, hi - lo], dtype=torch.int32, device=device()),
            torch.tensor([length - starts[1] + hi], dtype=torch.int32, device=device()),
            **x.options,
        )
        assert torch.equal(chunk, whole[lo:hi])


def test_only_rows_of_the_step_are_written() -> None:
    x = make_inputs(BY_NAME["cached_prefix"])
    total = x.q.shape[0]
    padded = torch.cat([x.q, poisoned((3, *x.q.shape[1:]), x.q.dtype)])
    buffer = poisoned((total + 3, x.q.shape[1], 2, x.q.shape[2]), x.q.dtype)
    got = ragged_prefill(padded, *x.prefill()[1:], **x.options, out=buffer[:, :, 0])
    assert got.data_ptr() == buffer.data_ptr()
    assert torch.equal(got[:total], ragged_prefill(*x.prefill(), **x.options))
    assert buffer[total:].isnan().all() and buffer[:, :, 1].isnan().all()


def test_the_cache_may_be_a_slice_of_a_larger_one() -> None:
    x = make_inputs(BY_NAME["gqa_7_1"])
    both = torch.stack([x.k_cache, x.v_cache], 1)  # [blocks, 2, block_size, heads, head_dim]
    got = ragged_prefill(x.q, both[:, 0], both[:, 1], *x.prefill()[3:], **x.options)
    assert torch.equal(got, ragged_prefill(*x.prefill(), **x.options))


def test_no_tokens_and_no_sequences() -> None:
    x = make_inputs(BY_NAME["one_token"])
    zero = torch.zeros(1, dtype=torch.int32, device=device())
    assert ragged_prefill(x.q[:0], x.k_cache, x.v_cache, x.block_table[:0], zero, zero[:0], **x.options).shape[0] == 0


def test_a_broken_contract_is_a_value_error() -> None:
    x = make_inputs(BY_NAME["one_token"])
    q, k_cache, v_cache, table, starts, lengths = x.prefill()
    scale = {"softmax_scale": 0.125}
    bad = [
        ((q[:, :3].repeat(1, 2, 1)[:, :5], k_cache, v_cache, table, starts, lengths), scale, "num_heads"),
        ((q[..., :32], k_cache, v_cache, table, starts, lengths), scale, "head_dim of k_cache"),
        ((q.half(), k_cache, v_cache, table, starts, lengths), scale, "dtype of k_cache"),
        ((q, k_cache, v_cache[:1], table, starts, lengths), scale, "shape of v_cache"),
        ((q, k_cache, v_cache, table.long(), starts, lengths), scale, "dtype of block_table"),
        ((q, k_cache, v_cache, table, starts[:1], lengths), scale, "shape of cu_seqlens_q"),
        (x.prefill(), {"softmax_scale": 0.0}, "softmax_scale"),
        (x.prefill(), scale | {"window": 0}, "window"),
        (x.prefill(), scale | {"soft_cap": -1.0}, "soft_cap"),
        (x.prefill(), scale | {"sinks": torch.zeros(3, device=device())}, "shape of sinks"),
        (x.prefill(), scale | {"k_scale": torch.ones(4, device=device())}, "k_scale"),
        (x.prefill(), scale | {"out": q.half()}, "dtype of out"),
    ]
    for args, options, match in bad:
        with pytest.raises(ValueError, match=match):
            ragged_prefill(*args, **options)
