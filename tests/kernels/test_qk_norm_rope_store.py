"""`qk_norm_rope_store` against its twin and against its parts; what it must not touch; large angles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pyrite_kernels import qk_norm_rope_store, store_kv
from pyrite_kernels.qk_norm_rope_store import reference
from pyrite_kernels.qk_norm_rope_store.cases import CASES, QkCase
from pyrite_kernels.ragged_prefill.cases import poisoned_cache
from pyrite_kernels.store_kv.reference import decode
from pyrite_kernels.testing import assert_close, device, poisoned

BOUND = {torch.float32: 2e-6, torch.float16: 1e-3}
TENSORS = ("q", "k", "v", "k_cache", "v_cache", "positions", "slot_mapping")


def inputs(case: QkCase) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors by name, with every fourth slot -1, and the options; q, k and v are parts of one tensor."""
    make = torch.Generator().manual_seed(0)
    heads = (case.num_heads, case.num_kv_heads, case.num_kv_heads)
    wide = 2.0 * torch.randn(case.num_tokens, sum(heads), case.head_dim, generator=make)
    q, k, v = wide.to(device(), case.dtype).split(heads, dim=1)
    num_blocks = -(-case.num_tokens // case.block_size) + 2
    slots = torch.randperm(num_blocks * case.block_size, generator=make)[: case.num_tokens].to(torch.int32)
    slots[3::4] = -1
    positions = torch.randint(0, 4000, (case.num_tokens,), generator=make, dtype=torch.int32)
    shape = (num_blocks, case.block_size, case.num_kv_heads, case.head_dim)
    caches = [poisoned_cache(shape, case.cache_dtype or case.dtype) for _ in range(2)]
    options: dict[str, Any] = {"rope_scale": case.rope_scale, "weight_offset": float(case.norm == "centred")}
    if case.norm != "none":
        options |= {"q_eps": 1e-6, "k_eps": 1e-5, "q_factor": case.q_factor}
    if case.norm in ("weight", "centred"):
        for name in ("q_weight", "k_weight"):
            options[name] = (torch.randn(case.head_dim, generator=make) + 1 - options["weight_offset"]).to(device())
    if case.half:
        options["inv_freq"] = (10000.0 ** (-torch.arange(case.half) / case.half)).to(device())
    if case.cache_dtype is not None:
        for name in ("k_scale", "v_scale"):
            options[name] = (0.05 + torch.rand(case.num_kv_heads, generator=make) / 20).to(device())
    tensors = (q, k, v, *caches, positions.to(device()), slots.to(device()))
    return dict(zip(TENSORS, tensors, strict=True)), options


def copied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in tensors.items()}


def as_bytes(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.uint8)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_twin_agrees(case: QkCase) -> None:
    tensors, options = inputs(case)
    before, expected = copied(tensors), copied(tensors)
    out = poisoned(tensors["q"].shape, case.dtype)
    assert qk_norm_rope_store(**tensors, **options, out=out) is out
    reference.qk_norm_rope_store(**expected, **options)
    bound = BOUND[case.dtype]
    assert_close(out, expected["q"], max_error=8 * bound, rms_error=bound)
    for name in ("q", "k", "v", "positions", "slot_mapping"):
        assert torch.equal(tensors[name], before[name])
    assert torch.equal(as_bytes(tensors["v_cache"]), as_bytes(expected["v_cache"]))
    got, want = tensors["k_cache"], expected["k_cache"]
    if case.cache_dtype is None:
        assert_close(got, want, max_error=8 * bound, rms_error=bound)
    else:  # a value between two codes may fall to either side
        assert (as_bytes(got) != as_bytes(want)).float().mean() < 1e-2
        pair = (decode(x, options["k_scale"]) for x in (got, want))
        assert_close(*pair, max_error=0.3, rms_error=1e-2)


@pytest.mark.parametrize("case", [CASES[1], CASES[3], CASES[7]], ids=lambda case: case.name)
def test_in_place_and_the_bits_of_the_parts(case: QkCase) -> None:
    """q is written over itself; the cache has what `store_kv` makes of a k that went the way of q."""
    tensors, options = inputs(case)
    alone = copied(tensors)
    mirrored = {"q": alone["k"], "k": alone["v"], "v": alone["v"]}  # k as the queries of another call
    swapped = {k.replace("k_", "q_"): v for k, v in options.items() if k in ("k_eps", "k_weight", "k_factor")}
    rest = {k: options[k] for k in ("inv_freq", "rope_scale", "weight_offset") if k in options}
    caches = {name: torch.zeros_like(alone[name]).to(case.dtype) for name in ("k_cache", "v_cache")}
    index = {name: alone[name] for name in ("positions", "slot_mapping")}
    rotated = qk_norm_rope_store(**mirrored, **caches, **index, **swapped, **rest, out=torch.empty_like(alone["k"]))
    scales = {k: options[k] for k in ("k_scale", "v_scale") if k in options}
    store_kv(rotated, alone["v"], alone["k_cache"], alone["v_cache"], alone["slot_mapping"], **scales)
    expected = qk_norm_rope_store(**copied(tensors), **options, out=torch.empty_like(tensors["q"]))
    assert qk_norm_rope_store(**tensors, **options) is tensors["q"]
    assert torch.equal(tensors["q"], expected)
    for name in ("k_cache", "v_cache"):
        assert torch.equal(as_bytes(tensors[name]), as_bytes(alone[name]))


@pytest.mark.parametrize("case", [CASES[1], CASES[5]], ids=lambda case: case.name)
def test_a_token_is_the_same_alone_and_in_any_batch(case: QkCase) -> None:
    """Each token by itself, where its heads are shared by other programs, beside all at once."""
    tensors, options = inputs(case)
    alone = copied(tensors)
    per_token = ("q", "k", "v", "positions", "slot_mapping")
    for t in range(case.num_tokens):
        qk_norm_rope_store(**{n: x[t : t + 1] if n in per_token else x for n, x in alone.items()}, **options)
    many = {n: torch.cat([x] * 5) if n in per_token else x for n, x in tensors.items()}
    many["slot_mapping"][case.num_tokens :] = -1
    qk_norm_rope_store(**many, **options)
    assert torch.equal(many["q"], torch.cat([alone["q"]] * 5))
    for name in ("k_cache", "v_cache"):
        assert torch.equal(as_bytes(tensors[name]), as_bytes(alone[name]))


def test_nothing_is_written_beside_the_heads_of_q() -> None:
    tensors, options = inputs(CASES[3])
    wide = poisoned((3, 6, 100), torch.float32)
    out = wide[:, 1:5, 10:90]
    qk_norm_rope_store(**tensors, **options, out=out)
    assert not out.isnan().any()
    out.fill_(float("nan"))
    assert wide.isnan().all()


def test_large_angles_are_precise() -> None:
    positions = torch.tensor([0, 1, 2, 3, 22, 355, 4095, 103993, 131071, 1 << 20, (1 << 24) - 1], dtype=torch.int32)
    inv_freq = torch.tensor([1.0, 0.7, 0.1, 1e-3, 1e-6, 1.5707964, 0.5235988, 3.1415927])
    num = len(positions)
    q = torch.zeros(num, 1, 16)
    q[..., :8] = 1.0
    cache = torch.zeros(num, 1, 1, 16).to(device())
    slots = torch.full((num,), -1, dtype=torch.int32).to(device())
    zero = torch.zeros(num, 1, 16).to(device())
    out = qk_norm_rope_store(
        q.to(device()), zero, zero, cache, cache, positions.to(device()), slots, inv_freq=inv_freq.to(device())
    )
    angles = (positions.float()[:, None] * inv_freq).double()
    expected = torch.cat([angles.cos(), angles.sin()], dim=1)
    assert (out[:, 0].cpu().double() - expected).abs().max() < 1.5e-7
    assert not cache.any()


def test_no_tokens() -> None:
    tensors, options = inputs(CASES[0])
    per_token = ("q", "k", "v", "positions", "slot_mapping")
    qk_norm_rope_store(**{n: x[:0] if n in per_token else x for n, x in tensors.items()}, **options)
    assert tensors["k_cache"].isnan().all()


def test_a_broken_contract_is_a_value_error() -> None:
    tensors, options = inputs(CASES[3])

    def call(**change: Any) -> None:
        qk_norm_rope_store(**{**tensors, **options, **change})

    q, k = tensors["q"], tensors["k"]
    with pytest.raises(ValueError, match="shape of k"):
        call(k=k[:, :, :40])
    with pytest.raises(ValueError, match="shape of v"):
        call(v=k[:, :1])
    with pytest.raises(ValueError, match="dtype of k: got"):
        call(k=k.half())
    with pytest.raises(ValueError, match="last stride of q"):
        call(q=torch.zeros(3, 80, 4, device=device()).transpose(1, 2))
    with pytest.raises(ValueError, match="positions"):
        call(positions=tensors["positions"].long())
    with pytest.raises(ValueError, match="slot_mapping"):
        call(slot_mapping=tensors["slot_mapping"][:1])
    with pytest.raises(ValueError, match="q_weight: got a tensor, expected None without q_eps"):
        call(q_eps=None)
    with pytest.raises(ValueError, match="shape of k_weight"):
        call(k_weight=torch.zeros(40, device=device()))
    with pytest.raises(ValueError, match="shape of inv_freq"):
        call(inv_freq=torch.zeros(41, device=device()))
    with pytest.raises(ValueError, match="dtype of inv_freq"):
        call(inv_freq=torch.zeros(16, device=device()).half())
    with pytest.raises(ValueError, match="k_scale: got a tensor"):
        call(k_scale=torch.ones(4, device=device()))
    with pytest.raises(ValueError, match="shape of out"):
        call(out=q[:, :1])
