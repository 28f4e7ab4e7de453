"""`store_kv` against its twin: every kind of cache, slots that store nothing, nothing written beside its rows."""

from __future__ import annotations

import pytest
import torch
from pyrite_kernels import store_kv
from pyrite_kernels.attention_launch import FP8
from pyrite_kernels.ragged_prefill.cases import poisoned_cache
from pyrite_kernels.store_kv import reference
from pyrite_kernels.store_kv.cases import CASES, StoreCase
from pyrite_kernels.testing import device


def inputs(case: StoreCase) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """k, v, both caches, slots (every fifth is -1), and the scales."""
    make = torch.Generator().manual_seed(0)
    shape = (case.num_tokens, case.num_kv_heads, case.head_dim)
    k, v = (3.0 * torch.randn(shape, generator=make) for _ in range(2))
    num_blocks = -(-case.num_tokens // case.block_size) + 2
    slots = torch.randperm(num_blocks * case.block_size, generator=make)[: case.num_tokens].to(torch.int32)
    slots[4::5] = -1
    cache_shape = (num_blocks, case.block_size, case.num_kv_heads, case.head_dim)
    caches = [poisoned_cache(cache_shape, case.cache_dtype) for _ in range(2)]
    scales = {}
    if case.cache_dtype != case.dtype:
        scales = {
            name: torch.rand(case.num_kv_heads, generator=make).to(device()) / 20 for name in ("k_scale", "v_scale")
        }
    return [k.to(device(), case.dtype), v.to(device(), case.dtype), *caches, slots.to(device())], scales


def as_bytes(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.uint8)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_whole_cache_has_the_bytes_of_the_twin(case: StoreCase) -> None:
    got, scales = inputs(case)
    expected = [x.clone() for x in got]
    store_kv(*got, **scales)
    reference.store_kv(*expected, **scales)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(as_bytes(a), as_bytes(b))


@pytest.mark.parametrize("dtype", [FP8, torch.int8], ids=["fp8", "int8"])
def test_extreme_numbers_round_and_saturate_as_in_the_twin(dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(FP8).float()
    finite = codes[codes.isfinite()].sort().values
    halfway = (finite[1:] + finite[:-1]) / 2
    nudged = [torch.nextafter(halfway, torch.tensor(side)) for side in (-1000.0, 1000.0)]
    special = torch.tensor([float("inf"), -float("inf"), float("nan"), 1e30, -1e-30, 0.5, 1.5, -2.5, 126.5, 2.0**-10])
    values = torch.cat([finite, halfway, *nudged, special])
    count = -(-len(values) // 16)
    k = torch.nn.functional.pad(values, (0, count * 16 - len(values))).view(count, 1, 16).to(device())
    caches = [torch.zeros((count, 1, 1, 16), dtype=torch.uint8, device=device()).view(dtype) for _ in range(4)]
    slots = torch.arange(count, dtype=torch.int32, device=device())
    one = torch.ones(1, device=device())
    store_kv(k, -k, caches[0], caches[1], slots, k_scale=one, v_scale=one)
    reference.store_kv(k, -k, caches[2], caches[3], slots, k_scale=one, v_scale=one)
    for got, expected in zip(caches[:2], caches[2:], strict=True):
        a, b = (reference.decode(x, None) for x in (got, expected))
        assert torch.equal(a.nan_to_num(999.0), b.nan_to_num(999.0))


def test_tensors_inside_larger_ones() -> None:
    (k, v, k_cache, v_cache, slots), _ = inputs(CASES[1])
    wide = torch.stack([k, v], 1)  # k and v of a token side by side, as one projection gives them
    expected = [k_cache.clone(), v_cache.clone()]
    store_kv(wide[:, 0], wide[:, 1], k_cache, v_cache, slots)
    reference.store_kv(k, v, *expected, slots)
    assert torch.equal(as_bytes(k_cache), as_bytes(expected[0])) and torch.equal(
        as_bytes(v_cache), as_bytes(expected[1])
    )


def test_no_tokens() -> None:
    (k, v, k_cache, v_cache, slots), _ = inputs(CASES[0])
    store_kv(k[:0], v[:0], k_cache, v_cache, slots[:0])
    assert k_cache.isnan().all() and v_cache.isnan().all()


def test_a_broken_contract_is_a_value_error() -> None:
    (k, v, k_cache, v_cache, slots), _ = inputs(CASES[0])
    one = torch.ones(1, device=device())
    with pytest.raises(ValueError, match="shape of v"):
        store_kv(k, v[..., :32], k_cache, v_cache, slots)
    with pytest.raises(ValueError, match="slot_mapping"):
        store_kv(k, v, k_cache, v_cache, slots.long())
    with pytest.raises(ValueError, match="k_scale: got a tensor, expected None"):
        store_kv(k, v, k_cache, v_cache, slots, k_scale=one)
    with pytest.raises(ValueError, match="k_scale: got None"):
        store_kv(k, v, k_cache.to(torch.int8), v_cache.to(torch.int8), slots)
    with pytest.raises(ValueError, match="dtype of k_cache"):
        store_kv(k, v, k_cache.half(), v_cache.half(), slots)
