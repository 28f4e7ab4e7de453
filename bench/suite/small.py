"""Benchmarks of the fused small ops, which only move bytes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pyrite_kernels import (
    embed,
    gate,
    glu,
    qk_norm_rope_store,
    rms_norm,
    rms_norm_fp8,
    rms_norm_int8,
    scale_softcap,
    select_candidates,
)
from pyrite_kernels.embed import cases as embed_cases
from pyrite_kernels.gate import cases as gate_cases
from pyrite_kernels.gate import reference as gate_reference
from pyrite_kernels.glu import cases as glu_cases
from pyrite_kernels.glu import reference as glu_reference
from pyrite_kernels.logits import cases as logits_cases
from pyrite_kernels.logits import reference as logits_reference
from pyrite_kernels.qk_norm_rope_store import cases as qk_cases
from pyrite_kernels.qk_norm_rope_store import reference as qk_reference
from pyrite_kernels.rms_norm import cases as norm_cases
from pyrite_kernels.rms_norm import reference as norm_reference
from pyrite_kernels.roofline import Cost
from pyrite_kernels.testing import assert_close, device

from suite.core import Bench, Ready, Trial, same
from suite.names import dtype_name

TORCH_NORM = "torch rms_norm"
TORCH_GLU = "torch silu"
TORCH_GATE = "torch sigmoid"
TORCH_EMBED = "torch embedding"
TORCH_TOPK = "torch topk + logsumexp"
NORMS = (rms_norm, rms_norm_int8, rms_norm_fp8)


def norm_benches(*, tiny: bool) -> list[Bench]:
    """`rms_norm` and its quantizing forms; torch's own norm, the residual added before, is a peer of the first."""
    made = []
    for norm in NORMS:
        for case in _chosen(norm_cases, tiny):
            weight = case.width * (case.weight_dtype.itemsize if case.weight_dtype else 0)
            rows = case.num_rows * case.width * case.dtype.itemsize * (1 if case.residual_dtype is None else 3)
            codes = case.num_rows * (case.width * (case.dtype.itemsize if norm is rms_norm else 1))
            moved = rows + codes + weight + (0 if norm is rms_norm else 4 * case.num_rows)
            peers = (TORCH_NORM,) if norm is rms_norm else ()
            made.append(_bench(norm.__name__, case, moved, partial(_norm_trial, norm, case), peers))
    return made


def glu_and_gate_benches(*, tiny: bool) -> list[Bench]:
    """`glu` of the halves of one tensor, and `gate` in place."""
    made = []
    for op, cases, make, peer in (
        (glu, glu_cases, _glu_trial, TORCH_GLU),
        (gate, gate_cases, _gate_trial, TORCH_GATE),
    ):
        for case in _chosen(cases, tiny):
            moved = 3 * case.num_rows * case.width * case.dtype.itemsize
            made.append(_bench(op.__name__, case, moved, partial(make, case), (peer,)))
    return made


def embed_benches(*, tiny: bool) -> list[Bench]:
    """`embed`."""
    return [
        _bench(
            "embed",
            case,
            case.num_rows * (2 * case.width * case.dtype.itemsize + 4),
            partial(_embed_trial, case),
            (TORCH_EMBED,),
        )
        for case in _chosen(embed_cases, tiny)
    ]


def qk_benches(*, tiny: bool) -> list[Bench]:
    """`qk_norm_rope_store`; torch has nothing of the kind."""
    made = []
    for case in _chosen(qk_cases, tiny):
        heads = case.num_heads + 2 * case.num_kv_heads
        moved = case.num_tokens * (2 * heads * case.head_dim * case.dtype.itemsize + 8)
        made.append(_bench("qk_norm_rope_store", case, moved, partial(_qk_trial, case), rows=case.num_tokens))
    return made


def logits_benches(*, tiny: bool) -> list[Bench]:
    """`scale_softcap` in place and `select_candidates`, which reads every logit once."""
    made = []
    for case in _chosen(logits_cases, tiny):
        size = case.num_rows * case.vocab_size * case.dtype.itemsize
        made.append(_bench("scale_softcap", case, 2 * size, partial(_softcap_trial, case)))
        found = size + case.num_rows * (8 * case.num_candidates + 4)
        made.append(_bench("select_candidates", case, found, partial(_candidates_trial, case), (TORCH_TOPK,)))
    return made


def _chosen(module: Any, tiny: bool) -> Any:
    """Cases for the interpreter are without bf16, which it cannot compute."""
    return [c for c in module.CASES if c.dtype != torch.bfloat16][:2] if tiny else module.BENCH_CASES


def _bench(
    op: str,
    case: Any,
    moved: int,
    prepare: Callable[[int], Trial],
    peers: tuple[str, ...] = (),
    rows: int | None = None,
) -> Bench:
    sizes = {"rows": case.num_rows if rows is None else rows, "bytes": moved}
    return Bench(op, case.name, dtype_name(case.dtype), "copy", Cost(moved), prepare, peers, sizes)


def _maker(seed: int) -> Callable[..., torch.Tensor]:
    """Normal numbers of a shape and dtype."""
    make = torch.Generator(device=device()).manual_seed(seed)

    def randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=make, device=device()).to(dtype)

    return randn


def _norm_trial(norm: Any, case: Any, seed: int) -> Trial:
    randn = _maker(seed)
    x = randn(case.num_rows, case.width, dtype=case.dtype)
    weight = None if case.weight_dtype is None else randn(case.width, dtype=case.weight_dtype)
    residual = None if case.residual_dtype is None else randn(case.num_rows, case.width, dtype=case.residual_dtype)
    plain = norm is rms_norm
    dtype = {rms_norm_int8: torch.int8, rms_norm_fp8: torch.float8_e4m3fn}.get(norm, case.dtype)
    outs = {"out": torch.empty((case.num_rows, case.width), dtype=dtype, device=x.device)}
    outs |= {} if plain else {"scale": torch.empty(case.num_rows, device=x.device)}
    options = {"eps": 1e-6, "weight_offset": case.weight_offset}

    def check() -> None:
        ours, theirs = (None if residual is None else residual.clone() for _ in range(2))
        got = norm(x, weight, residual=ours, **options)
        expected = getattr(norm_reference, norm.__name__)(x, weight, residual=theirs, **options)
        if plain:
            assert_close(got, expected, max_error=5e-2, rms_error=1e-2)
        else:  # a code may fall on the other side of a tie
            values = [codes.float() * scale[:, None] for codes, scale in (got, expected)]
            assert_close(*values, max_error=0.3, rms_error=1e-2)

    def peer() -> Ready:
        cast = None if weight is None else (weight.float() + case.weight_offset).to(case.dtype)
        normed = torch.nn.functional.rms_norm

        def call() -> torch.Tensor:
            y = x if residual is None else residual.add_(x)
            return normed(y.to(case.dtype), (case.width,), cast, 1e-6)

        kept = None if residual is None else residual.clone()
        expected = norm(x, weight, residual=kept, **options)
        before = None if residual is None else residual.clone()
        got = call()
        if residual is not None:
            residual.copy_(before)
        same(got, expected)
        return Ready(call)

    return Trial(lambda: norm(x, weight, residual=residual, **options, **outs), check, {TORCH_NORM: peer})


def _glu_trial(case: Any, seed: int) -> Trial:
    both = _maker(seed)(case.num_rows, 2 * case.width, dtype=case.dtype)
    a, b = both.chunk(2, dim=1)
    out = torch.empty((case.num_rows, case.width), dtype=case.dtype, device=both.device)

    def peer() -> Ready:
        def call() -> torch.Tensor:
            return torch.nn.functional.silu(a) * b

        same(call(), glu(a, b))
        return Ready(call)

    return Trial(
        lambda: glu(a, b, out=out),
        lambda: assert_close(glu(a, b), glu_reference.glu(a, b), max_error=5e-2, rms_error=1e-2),
        {TORCH_GLU: peer},
    )


def _gate_trial(case: Any, seed: int) -> Trial:
    randn = _maker(seed)
    x, by = (randn(case.num_rows, case.width, dtype=case.dtype) for _ in range(2))
    out = torch.empty_like(x)

    def peer() -> Ready:
        def call() -> torch.Tensor:
            return x * torch.sigmoid(by)

        same(call(), gate(x, by))
        return Ready(call)

    return Trial(
        lambda: gate(x, by, out=out),
        lambda: assert_close(gate(x, by), gate_reference.gate(x, by), max_error=5e-2, rms_error=1e-2),
        {TORCH_GATE: peer},
    )


@functools.lru_cache(maxsize=1)
def _table(vocab_size: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """One table for all sets of ids, since it alone is larger than any cache."""
    return _maker(0)(vocab_size, width, dtype=dtype)


def _embed_trial(case: Any, seed: int) -> Trial:
    weight = _table(case.vocab_size, case.width, case.dtype)
    make = torch.Generator(device=device()).manual_seed(seed)
    ids = torch.randint(case.vocab_size, (case.num_rows,), dtype=torch.int32, device=device(), generator=make)
    out = torch.empty((case.num_rows, case.width), dtype=case.dtype, device=device())

    def check() -> None:
        assert torch.equal(embed(ids, weight), weight[ids.long()]), "rows differ from the table's"

    def peer() -> Ready:
        def call() -> torch.Tensor:
            return torch.nn.functional.embedding(ids, weight)

        same(call(), embed(ids, weight))
        return Ready(call)

    return Trial(lambda: embed(ids, weight, out=out), check, {TORCH_EMBED: peer})


def _qk_trial(case: Any, seed: int) -> Trial:
    randn = _maker(seed)
    heads = (case.num_heads, case.num_kv_heads, case.num_kv_heads)
    q, k, v = randn(case.num_tokens, sum(heads), case.head_dim, dtype=case.dtype).split(heads, dim=1)
    blocks = -(-case.num_tokens // case.block_size)
    shape = (blocks, case.block_size, case.num_kv_heads, case.head_dim)
    caches = [torch.zeros(shape, dtype=case.dtype, device=device()) for _ in range(2)]
    steps = torch.arange(case.num_tokens, dtype=torch.int32, device=device())
    make = torch.Generator(device=device()).manual_seed(seed)
    slots = torch.randperm(blocks * case.block_size, generator=make, device=device())[: case.num_tokens]
    tail = (steps + 1000, slots.to(torch.int32))
    options: dict[str, Any] = {"q_factor": case.q_factor, "rope_scale": case.rope_scale}
    if case.norm != "none":
        options |= {"q_eps": 1e-6, "k_eps": 1e-6, "weight_offset": 1.0 if case.norm == "centred" else 0.0}
    if case.norm in ("weight", "centred"):
        options |= {"q_weight": randn(case.head_dim), "k_weight": randn(case.head_dim)}
    if case.half:
        options["inv_freq"] = 1e-4 ** (torch.arange(case.half, device=device()) / case.half)
    out = torch.empty(q.shape, dtype=case.dtype, device=device())

    def check() -> None:
        got = qk_norm_rope_store(q, k, v, *caches, *tail, **options, out=out)
        expected = [cache.clone() for cache in caches]
        twin = qk_reference.qk_norm_rope_store(q, k, v, *expected, *tail, **options, out=torch.empty_like(out))
        assert_close(got, twin, max_error=5e-2, rms_error=1e-2)
        for cache, one in zip(caches, expected, strict=True):
            assert_close(cache, one, max_error=5e-2, rms_error=1e-2)

    return Trial(lambda: qk_norm_rope_store(q, k, v, *caches, *tail, **options, out=out), check)


def _softcap_trial(case: Any, seed: int) -> Trial:
    x = _maker(seed)(case.num_rows, case.vocab_size, dtype=case.dtype)
    options = {"multiplier": 0.5, "soft_cap": 30.0}
    out = torch.empty_like(x)

    def check() -> None:
        expected = logits_reference.scale_softcap(x, **options)
        assert_close(scale_softcap(x, **options), expected, max_error=2e-2, rms_error=2e-3)

    return Trial(lambda: scale_softcap(x, **options, out=out), check)


def _candidates_trial(case: Any, seed: int) -> Trial:
    x = _maker(seed)(case.num_rows, case.vocab_size, dtype=case.dtype)
    options = {"num_candidates": case.num_candidates, "vocab_limit": case.vocab_limit}

    def check() -> None:
        got, expected = select_candidates(x, **options), logits_reference.select_candidates(x, **options)
        assert torch.equal(got[0], expected[0]), "candidates differ from the twin's"

    def peer() -> Ready:
        seen = x[:, : case.vocab_limit]

        def call() -> tuple[torch.Tensor, torch.Tensor]:
            return seen.topk(case.num_candidates, dim=1).values, seen.logsumexp(dim=1)

        values, ours = call()[0], select_candidates(x, **options)[1]
        same(values, ours)
        return Ready(call)

    return Trial(lambda: select_candidates(x, **options), check, {TORCH_TOPK: peer})
