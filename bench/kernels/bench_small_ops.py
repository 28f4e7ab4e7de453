"""The fused small ops beside a copy of as many bytes and beside torch. Small cases in the interpreter show only that
they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
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
from pyrite_kernels.testing import assert_close, device, interpreted

ROUNDS = 1 if interpreted() else 50


def sizes(module: Any) -> Any:
    """The cases of an op for this machine, as a parameter."""
    cases = [c for c in module.CASES if c.dtype != torch.bfloat16][:2] if interpreted() else module.BENCH_CASES
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float32, device=device()).to(dtype)


def num_bytes(*tensors: torch.Tensor) -> int:
    return sum(x.nbytes for x in tensors)


def copies(make: Callable[[], Any], bytes_of_one: int) -> list[Any]:
    """Inputs enough to rotate past the last cache level, 256 MB in all."""
    count = 1 if interpreted() else max(1, min(64, (256 << 20) // max(bytes_of_one, 1)))
    return [make() for _ in range(count)]


def time(benchmark: Any, name: str, moved: int, calls: list[Callable[[], Any]]) -> None:
    """Time one call after the other, each to its end on the device; `moved` is the fewest bytes that one moves."""
    turn = iter(range(1 << 30))

    def run() -> None:
        calls[next(turn) % len(calls)]()
        if not interpreted():
            torch.cuda.synchronize()

    benchmark.extra_info |= {"shape": name, "bytes": moved}
    benchmark.pedantic(run, rounds=ROUNDS, warmup_rounds=0 if interpreted() else 5)


def norm_inputs(case: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    x = randn(case.num_rows, case.width, dtype=case.dtype)
    residual = randn(case.num_rows, case.width, dtype=case.dtype) if case.residual_dtype is not None else None
    return x, randn(case.width), residual


@pytest.mark.parametrize(("norm", "out_bytes"), [(rms_norm, None), (rms_norm_int8, 1), (rms_norm_fp8, 1)])
@sizes(norm_cases)
def test_rms_norm(benchmark: Any, case: Any, norm: Any, out_bytes: int | None) -> None:
    x, weight, residual = norm_inputs(case)
    kept = None if residual is None else residual.clone()
    twin = getattr(norm_reference, norm.__name__)
    got, expected = norm(x, weight, eps=1e-6, residual=residual), twin(x, weight, eps=1e-6, residual=kept)
    if out_bytes is None:
        assert_close(got, expected, max_error=5e-2, rms_error=1e-2)
    else:
        assert_close(got[0].float(), expected[0].float(), max_error=1.0, rms_error=1e-2)
    size = out_bytes or case.dtype.itemsize
    moved = x.numel() * (case.dtype.itemsize * (1 if residual is None else 3) + size) + weight.nbytes
    outs = copies(lambda: (norm_inputs(case), torch.empty_like(got if out_bytes is None else got[0])), moved)
    time(
        benchmark,
        f"{norm.__name__}_{case.name}",
        moved,
        [lambda i=i, out=out: norm(i[0], i[1], eps=1e-6, residual=i[2], out=out) for i, out in outs],
    )


@sizes(norm_cases)
def test_torch_rms_norm(benchmark: Any, case: Any) -> None:
    """Torch's own norm, with a weight of the dtype of x and the residual added before."""
    inputs = copies(lambda: norm_inputs(case), case.num_rows * case.width * case.dtype.itemsize)

    def call(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        y = x if residual is None else residual.add_(x)
        return torch.nn.functional.rms_norm(y, (case.width,), weight.to(y.dtype), 1e-6)

    moved = case.num_rows * case.width * case.dtype.itemsize * (2 if inputs[0][2] is None else 4)
    time(benchmark, f"torch_{case.name}", moved, [lambda i=i: call(*i) for i in inputs])


@pytest.mark.parametrize(("op", "reference"), [(glu, glu_reference.glu), (gate, gate_reference.gate)])
@sizes(glu_cases)
def test_glu_and_gate(benchmark: Any, case: Any, op: Any, reference: Any) -> None:
    def make() -> tuple[torch.Tensor, ...]:
        a, b = randn(case.num_rows, 2 * case.width, dtype=case.dtype).chunk(2, dim=1)
        return a, b, torch.empty(case.num_rows, case.width, dtype=case.dtype, device=device())

    a, b, out = make()
    assert_close(op(a, b, out=out), reference(a, b), max_error=5e-2, rms_error=1e-2)
    inputs = copies(make, 3 * out.nbytes)
    calls = [lambda i=i: op(i[0], i[1], out=i[2]) for i in inputs]
    time(benchmark, f"{op.__name__}_{case.name}", 3 * out.nbytes, calls)


@sizes(gate_cases)
def test_gate_of_attention(benchmark: Any, case: Any) -> None:
    x = randn(case.num_rows, case.width, dtype=case.dtype)
    inputs = copies(lambda: (x.clone(), torch.randn_like(x)), 2 * x.nbytes)
    time(benchmark, f"gate_{case.name}", 3 * x.nbytes, [lambda i=i: gate(i[0], i[1], out=i[0]) for i in inputs])


@sizes(embed_cases)
def test_embed(benchmark: Any, case: Any) -> None:
    weight = randn(case.vocab_size, case.width, dtype=case.dtype)
    ids = [
        torch.randint(case.vocab_size, (case.num_rows,), dtype=torch.int32, device=device())
        for _ in range(1 if interpreted() else 16)
    ]
    out = torch.empty(case.num_rows, case.width, dtype=case.dtype, device=device())
    assert torch.equal(embed(ids[0], weight, out=out), weight[ids[0].long()])
    time(benchmark, f"embed_{case.name}", 2 * out.nbytes, [lambda i=i: embed(i, weight, out=out) for i in ids])


def qk_inputs(case: Any) -> tuple[list[torch.Tensor], dict[str, Any]]:
    heads = (case.num_heads, case.num_kv_heads, case.num_kv_heads)
    q, k, v = randn(case.num_tokens, sum(heads), case.head_dim, dtype=case.dtype).split(heads, dim=1)
    blocks = -(-case.num_tokens // case.block_size)
    shape = (blocks, case.block_size, case.num_kv_heads, case.head_dim)
    caches = [torch.zeros(shape, dtype=case.dtype, device=device()) for _ in range(2)]
    steps = torch.arange(case.num_tokens, dtype=torch.int32, device=device())
    options: dict[str, Any] = {"q_eps": 1e-6, "k_eps": 1e-6, "out": torch.empty_like(q)}
    options |= {"q_weight": randn(case.head_dim), "k_weight": randn(case.head_dim)}
    options["inv_freq"] = (1e-4 ** (torch.arange(case.half) / case.half)).to(device()) if case.half else None
    return [q, k, v, *caches, steps + 1000, steps], options


@sizes(qk_cases)
def test_qk_norm_rope_store(benchmark: Any, case: Any) -> None:
    tensors, options = qk_inputs(case)
    expected = [x.clone() for x in tensors]
    got = qk_norm_rope_store(*tensors, **options)
    twin = qk_reference.qk_norm_rope_store(*expected, **{**options, "out": None})
    assert_close(got, twin, max_error=5e-2, rms_error=1e-2)
    assert_close(tensors[3], expected[3], max_error=5e-2, rms_error=1e-2)
    moved = 2 * num_bytes(*tensors[:3])
    inputs = copies(lambda: qk_inputs(case), moved)
    time(benchmark, f"qk_{case.name}", moved, [lambda i=i: qk_norm_rope_store(*i[0], **i[1]) for i in inputs])


@sizes(logits_cases)
def test_scale_softcap(benchmark: Any, case: Any) -> None:
    x = randn(case.num_rows, case.vocab_size, dtype=case.dtype)
    got = scale_softcap(x, multiplier=0.5, soft_cap=30.0)
    assert_close(got, logits_reference.scale_softcap(x, multiplier=0.5, soft_cap=30.0), max_error=1e-3, rms_error=1e-4)
    inputs = copies(x.clone, x.nbytes)
    calls = [lambda i=i: scale_softcap(i, multiplier=0.5, soft_cap=30.0, out=i) for i in inputs]
    time(benchmark, f"scale_softcap_{case.name}", 2 * x.nbytes, calls)


@sizes(logits_cases)
def test_select_candidates(benchmark: Any, case: Any) -> None:
    x = randn(case.num_rows, case.vocab_size, dtype=case.dtype)
    options = {"num_candidates": case.num_candidates, "vocab_limit": case.vocab_limit}
    got, expected = select_candidates(x, **options), logits_reference.select_candidates(x, **options)
    assert torch.equal(got[0], expected[0])
    inputs = copies(x.clone, x.nbytes)
    calls = [lambda i=i: select_candidates(i, **options) for i in inputs]
    time(benchmark, f"select_candidates_{case.name}", x.nbytes, calls)


@sizes(logits_cases)
def test_torch_topk_and_logsumexp(benchmark: Any, case: Any) -> None:
    """Torch's own, whose ties fall anywhere."""
    x = randn(case.num_rows, case.vocab_size, dtype=case.dtype)
    inputs = copies(x.clone, x.nbytes)
    calls = [lambda i=i: (i.topk(case.num_candidates, dim=1), i.logsumexp(dim=1)) for i in inputs]
    time(benchmark, f"torch_topk_{case.name}", x.nbytes, calls)


@pytest.mark.parametrize("size", [1 << 10] if interpreted() else [64 << 20, 256 << 20])
def test_copy_roof(benchmark: Any, size: int) -> None:
    """A copy that reads half of the bytes and writes the other half."""
    pairs = copies(lambda: [torch.zeros(size // 2, dtype=torch.uint8, device=device()) for _ in range(2)], size)
    time(benchmark, f"copy_{size}", size, [lambda p=p: p[1].copy_(p[0]) for p in pairs])
