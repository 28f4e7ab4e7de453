"""`paged_decode` against its twin, its bits against prefill and over batches, and faults that must be caught."""

from __future__ import annotations

import pytest
import torch
from pyrite_kernels import paged_decode, ragged_prefill
from pyrite_kernels.aot import ARCHS
from pyrite_kernels.paged_decode import launch, reference
from pyrite_kernels.paged_decode.cases import CASES
from pyrite_kernels.ragged_prefill import launch as prefill_launch
from pyrite_kernels.ragged_prefill.cases import CASES as PREFILL_CASES
from pyrite_kernels.ragged_prefill.cases import AttentionCase, make_inputs
from pyrite_kernels.testing import assert_close, device, poisoned

BY_NAME = {case.name: case for case in CASES}


def bounds(case: AttentionCase) -> dict[str, float]:
    """f32 differs by the order of sums; f16 by the rounding of probabilities and of the output."""
    small = case.dtype == torch.float32
    return {"max_error": 2e-5, "rms_error": 2e-6} if small else {"max_error": 8e-3, "rms_error": 8e-4}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_parity(case: AttentionCase) -> None:
    x = make_inputs(case)
    got = paged_decode(*x.decode(), **x.options, out=poisoned(x.q.shape, x.q.dtype))
    assert_close(got, reference.paged_decode(*x.decode(), **x.options), **bounds(case))


@pytest.mark.parametrize("case", PREFILL_CASES, ids=lambda case: case.name)
def test_every_token_of_a_prefill_has_the_same_bits_in_decode(case: AttentionCase) -> None:
    x = make_inputs(case)
    expected = ragged_prefill(*x.prefill(), **x.options)
    starts = x.cu_seqlens_q.tolist()
    rows = [(s, t) for s in range(len(starts) - 1) for t in range(starts[s], starts[s + 1])][-48:]
    lengths = [int(x.seq_lens[s]) - (starts[s + 1] - t) + 1 for s, t in rows]
    got = paged_decode(
        x.q[[t for _, t in rows]],
        x.k_cache,
        x.v_cache,
        x.block_table[[s for s, _ in rows]],
        torch.tensor(lengths, dtype=torch.int32, device=device()),
        **x.options,
    )
    assert torch.equal(got, expected[[t for _, t in rows]])


@pytest.mark.parametrize("name", ["three_splits", "window_long"])
def test_bits_do_not_depend_on_the_batch_the_table_or_the_programs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = make_inputs(BY_NAME[name])
    whole = paged_decode(*x.decode(), **x.options)
    wide = torch.cat([x.block_table, torch.full((len(x.q), 90), -1, dtype=torch.int32, device=device())], 1)
    for seq in range(len(x.q)):
        one = slice(seq, seq + 1)
        alone = paged_decode(x.q[one], x.k_cache, x.v_cache, wide[one], x.seq_lens[one], **x.options)
        assert torch.equal(alone, whole[one])
    monkeypatch.setattr(launch, "MAX_PROGRAMS", 1)  # each program takes all splits of its heads
    assert torch.equal(paged_decode(*x.decode(), **x.options), whole)


def test_a_row_of_length_zero_is_not_written() -> None:
    x = make_inputs(BY_NAME["gqa_7_1"])
    whole = paged_decode(*x.decode(), **x.options)
    lengths = x.seq_lens.clone()
    lengths[1] = 0
    out = poisoned(x.q.shape, x.q.dtype)
    paged_decode(*x.decode()[:4], lengths, **x.options, out=out)
    assert torch.equal(out[0], whole[0]) and out[1].isnan().all()


def test_only_heads_of_the_output_are_written() -> None:
    x = make_inputs(BY_NAME["head_dim_24"])
    buffer = poisoned((x.q.shape[0], x.q.shape[1], 32), x.q.dtype)
    got = paged_decode(*x.decode(), **x.options, out=buffer[..., :24])
    assert torch.equal(got, paged_decode(*x.decode(), **x.options)) and buffer[..., 24:].isnan().all()


def test_an_off_by_one_in_the_window_is_caught() -> None:
    case = BY_NAME["window"]
    x = make_inputs(AttentionCase("wider", case.sequences, 4, 2, window=case.window + 1))
    x.options["window"] = case.window
    got = paged_decode(*x.decode(), **x.options)
    assert_close(got, reference.paged_decode(*x.decode(), **x.options), **bounds(case))
    for wrong in (case.window - 1, case.window + 1):
        with pytest.raises(AssertionError, match="max error"):
            assert_close(got, reference.paged_decode(*x.decode(), **(x.options | {"window": wrong})), **bounds(case))


def test_a_missing_mask_at_the_tail_is_caught() -> None:
    case = BY_NAME["three_splits"]
    x = make_inputs(case)
    for cache in (x.k_cache, x.v_cache):
        cache.nan_to_num_(1.0)  # finite numbers past the tail: only the mask keeps them out
    got = paged_decode(*x.decode(), **x.options)
    assert_close(got, reference.paged_decode(*x.decode(), **x.options), **bounds(case))
    whole_tiles = (x.seq_lens + 63) // 64 * 64
    with pytest.raises(AssertionError, match="max error"):
        assert_close(got, reference.paged_decode(*x.decode()[:4], whole_tiles, **x.options), **bounds(case))


def test_a_swapped_page_is_caught() -> None:
    case = BY_NAME["three_splits"]
    x = make_inputs(case)
    got = paged_decode(*x.decode(), **x.options)
    table = x.block_table.clone()
    table[0, 1] = table[1, 0]
    with pytest.raises(AssertionError, match="max error"):
        assert_close(got, reference.paged_decode(*x.decode()[:3], table, x.seq_lens, **x.options), **bounds(case))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("block_d", [16, 64, 128, 256])
@pytest.mark.parametrize("query_bytes", [2, 4])
def test_a_warp_has_as_many_rows_as_in_prefill(arch: str, block_d: int, query_bytes: int) -> None:
    """Only then does a row sum in one order in both; a warp that shares its rows must share them with as many."""
    ours, theirs = (module.config(arch, block_d, query_bytes) for module in (launch, prefill_launch))
    assert ours.block_m / ours.num_warps == theirs.block_m / theirs.num_warps
    if ours.block_m < 16 * ours.num_warps:
        assert ours.block_m == theirs.block_m


def test_no_sequences() -> None:
    x = make_inputs(BY_NAME["one_token"])
    assert paged_decode(x.q[:0], x.k_cache, x.v_cache, x.block_table[:0], x.seq_lens[:0], **x.options).shape[0] == 0


def test_a_broken_contract_is_a_value_error() -> None:
    x = make_inputs(BY_NAME["one_token"])
    q, k_cache, v_cache, table, lengths = x.decode()
    for args, match in (
        ((q, k_cache, v_cache, table.repeat(2, 1), lengths), "shape of block_table"),
        ((q, k_cache, v_cache, table, lengths.long()), "dtype of seq_lens"),
        ((q[0], k_cache, v_cache, table, lengths), "shape of q"),
        ((q, k_cache[0], v_cache, table, lengths), "shape of k_cache"),
    ):
        with pytest.raises(ValueError, match=match):
            paged_decode(*args, softmax_scale=0.125)
