"""Benchmarks of the attention ops and of the store into their cache."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from pyrite_kernels import paged_decode, ragged_prefill, store_kv
from pyrite_kernels.paged_decode import cases as decode_cases
from pyrite_kernels.paged_decode import reference as decode_reference
from pyrite_kernels.ragged_prefill import cases as prefill_cases
from pyrite_kernels.ragged_prefill import reference as prefill_reference
from pyrite_kernels.ragged_prefill.cases import AttentionCase, AttentionInputs, make_inputs
from pyrite_kernels.roofline import Cost, attention_cost
from pyrite_kernels.store_kv import reference as store_reference
from pyrite_kernels.testing import assert_close, device

from suite.core import Bench, Missing, Ready, Trial, same
from suite.names import KINDS, dtype_name

SDPA = ("torch sdpa", "torch sdpa flash", "torch sdpa cudnn")
FLEX = "torch flex_attention"
CHECKED_ROWS = 4


def prefill_benches(*, tiny: bool) -> list[Bench]:
    """`ragged_prefill`; peers where the batch is one whole prompt without a window."""
    return [_bench("ragged_prefill", case) for case in (prefill_cases.CASES[:2] if tiny else prefill_cases.BENCH_CASES)]


def decode_benches(*, tiny: bool) -> list[Bench]:
    """`paged_decode`; peers where all sequences have one length and there is no window."""
    return [_bench("paged_decode", case) for case in (decode_cases.CASES[:2] if tiny else decode_cases.BENCH_CASES)]


def _bench(op: str, case: AttentionCase) -> Bench:
    kv_dtype = case.cache_dtype or case.dtype
    cost = attention_cost(
        case.sequences,
        num_heads=case.num_heads,
        num_kv_heads=case.num_kv_heads,
        head_dim=case.head_dim,
        itemsize=case.dtype.itemsize,
        kv_itemsize=kv_dtype.itemsize,
        window=case.window,
    )
    keys = max(length for length, _ in case.sequences)
    kv_bytes = 2 * sum(length for length, _ in case.sequences) * case.num_kv_heads * case.head_dim * kv_dtype.itemsize
    sizes = {"seqs": len(case.sequences), "keys": keys, "kv_bytes": kv_bytes, "block_size": case.block_size}
    sizes |= {"heads": case.num_heads, "kv_heads": case.num_kv_heads, "head_dim": case.head_dim}
    sizes |= {"new": sum(new for _, new in case.sequences), "window": case.window or 0}
    return Bench(
        op=op,
        shape=case.name,
        dtype=dtype_name(case.dtype) + ("" if kv_dtype == case.dtype else f" kv {dtype_name(kv_dtype)}"),
        kind=KINDS[case.dtype],
        cost=cost,
        prepare=partial(_prefill_trial if op == "ragged_prefill" else _decode_trial, case),
        peers=(*SDPA, FLEX) if _is_plain(op, case) else (),
        sizes=sizes,
    )


def _is_plain(op: str, case: AttentionCase) -> bool:
    """Whether torch computes the same on contiguous tensors."""
    whole = all(length == new for length, new in case.sequences) if op == "ragged_prefill" else True
    options = case.window or case.soft_cap or case.sinks
    return whole and not options and len(set(case.sequences)) == 1


def _prefill_trial(case: AttentionCase, seed: int) -> Trial:
    x = make_inputs(replace(case, seed=seed))
    out = torch.empty_like(x.q)

    def check() -> None:
        few = last_rows(x, CHECKED_ROWS)
        expected = prefill_reference.ragged_prefill(*few.prefill(), **few.options)
        got = ragged_prefill(*x.prefill(), **x.options)[-len(expected) :]
        assert_close(got, expected, max_error=5e-2, rms_error=1e-2)

    return Trial(lambda: ragged_prefill(*x.prefill(), **x.options, out=out), check, _peers(x, case, is_prefill=True))


def last_rows(x: AttentionInputs, count: int) -> AttentionInputs:
    """The step of only the last new tokens of the last sequence."""
    new = min(count, int(x.cu_seqlens_q[-1] - x.cu_seqlens_q[-2]))
    starts = torch.tensor([0, new], dtype=torch.int32, device=x.q.device)
    return AttentionInputs(x.q[-new:], x.k_cache, x.v_cache, x.block_table[-1:], starts, x.seq_lens[-1:], x.options)


def _decode_trial(case: AttentionCase, seed: int) -> Trial:
    x = make_inputs(replace(case, seed=seed))
    out = torch.empty_like(x.q)

    def check() -> None:
        first = (x.q[:1], x.k_cache, x.v_cache, x.block_table[:1], x.seq_lens[:1])
        got = paged_decode(*x.decode(), **x.options)[:1]
        assert_close(got, decode_reference.paged_decode(*first, **x.options), max_error=5e-2, rms_error=1e-2)

    return Trial(lambda: paged_decode(*x.decode(), **x.options, out=out), check, _peers(x, case, is_prefill=False))


# Peers: torch on contiguous tensors of the query's dtype that hold the same numbers as the pages.


def _peers(x: AttentionInputs, case: AttentionCase, *, is_prefill: bool) -> dict[str, Any]:
    names = dict(zip(SDPA, (None, "FLASH_ATTENTION", "CUDNN_ATTENTION"), strict=True))
    peers: dict[str, Any] = {name: partial(_sdpa, x, case, is_prefill, backend) for name, backend in names.items()}
    return peers | {FLEX: partial(_flex, x, case, is_prefill)}


def contiguous(x: AttentionInputs, case: AttentionCase) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q [seqs, heads, new, head_dim], k and v [seqs, kv_heads, keys, head_dim] of sequences of one length."""
    length, _ = case.sequences[0]
    pages = x.block_table[:, : -(-length // case.block_size)].long()

    def gather(cache: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        found = cache[pages].flatten(1, 2)[:, :length]  # [seqs, keys, kv_heads, head_dim]
        values = found if scale is None else (found.float() * scale[:, None]).to(case.dtype)
        return values.transpose(1, 2).contiguous()

    q = x.q.view(len(case.sequences), -1, case.num_heads, case.head_dim).transpose(1, 2).contiguous()
    return q, gather(x.k_cache, x.options.get("k_scale")), gather(x.v_cache, x.options.get("v_scale"))


def _sdpa(x: AttentionInputs, case: AttentionCase, is_prefill: bool, backend: str | None) -> Ready:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = contiguous(x, case)
    options = {"is_causal": is_prefill, "enable_gqa": case.num_heads != case.num_kv_heads}
    attend = torch.nn.functional.scaled_dot_product_attention
    if backend is None:
        picked = SDPBackend(torch._fused_sdp_choice(q, k, v, **options))
        _verify(attend(q, k, v, **options), x, is_prefill)
        return Ready(lambda: attend(q, k, v, **options), f"picked {picked.name}")
    chosen = getattr(SDPBackend, backend)
    if chosen == SDPBackend.CUDNN_ATTENTION and not q.is_cuda:
        raise Missing("needs a GPU")

    def call() -> torch.Tensor:
        with sdpa_kernel(chosen):
            return attend(q, k, v, **options)

    _verify(call(), x, is_prefill)
    return Ready(call)


def _flex(x: AttentionInputs, case: AttentionCase, is_prefill: bool) -> Ready:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if not x.q.is_cuda:
        raise Missing("needs a GPU")
    q, k, v = contiguous(x, case)
    mask = None
    if is_prefill:
        length = q.shape[2]
        mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, length, length, device=q.device)
    attend = torch.compile(flex_attention, dynamic=False)
    gqa = case.num_heads != case.num_kv_heads

    def call() -> torch.Tensor:
        return attend(q, k, v, block_mask=mask, enable_gqa=gqa)

    _verify(call(), x, is_prefill)
    return Ready(call)


def _verify(got: torch.Tensor, x: AttentionInputs, is_prefill: bool) -> None:
    ours = ragged_prefill(*x.prefill(), **x.options) if is_prefill else paged_decode(*x.decode(), **x.options)
    same(got.transpose(1, 2).reshape(ours.shape), ours)


# The store.


def store_benches(*, tiny: bool) -> list[Bench]:
    """`store_kv`: keys and values of a step, 8 heads of 128, into pages of 32 in random order."""
    made = []
    for tokens in (3,) if tiny else (1, 64, 8192):
        dtype = torch.float32 if tiny else torch.bfloat16
        moved = 4 * tokens * 8 * 128 * dtype.itemsize
        made.append(
            Bench(
                op="store_kv",
                shape=f"t{tokens}_8x128",
                dtype=dtype_name(dtype),
                kind="copy",
                cost=Cost(moved + 4 * tokens),
                prepare=partial(_store_trial, tokens, dtype),
                sizes={"rows": tokens, "bytes": moved},
            )
        )
    return made


def _store_trial(tokens: int, dtype: torch.dtype, seed: int) -> Trial:
    make = torch.Generator(device=device()).manual_seed(seed)
    k, v = (torch.randn((tokens, 8, 128), generator=make, device=device()).to(dtype) for _ in range(2))
    blocks = -(-tokens // 32) + 1
    slots = torch.randperm(blocks * 32, generator=make, device=device())[:tokens].to(torch.int32)
    caches = [torch.zeros((blocks, 32, 8, 128), dtype=dtype, device=device()) for _ in range(2)]

    def check() -> None:
        store_kv(k, v, *caches, slots)
        few = slice(max(0, tokens - CHECKED_ROWS), tokens)
        expected = [cache.clone() for cache in caches]
        for cache in expected:
            cache.view(-1, 8, 128)[slots[few].long()] = 0.0
        store_reference.store_kv(k[few], v[few], *expected, slots[few])
        assert all(torch.equal(a, b) for a, b in zip(caches, expected, strict=True)), (
            "the cache differs from the twin's"
        )

    return Trial(lambda: store_kv(k, v, *caches, slots), check)
