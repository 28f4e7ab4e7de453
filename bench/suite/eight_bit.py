"""Benchmarks of the products of 8-bit rows and 8-bit weights, and of the quantization of rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from pyrite_kernels import fp8_matmul, int8_matmul, quantize_rows_fp8, quantize_rows_int8
from pyrite_kernels.fp8_matmul import cases as fp8_cases
from pyrite_kernels.fp8_matmul import reference as fp8_reference
from pyrite_kernels.fp8_matmul.cases import Fp8Case
from pyrite_kernels.int8_matmul import cases as int8_cases
from pyrite_kernels.int8_matmul import reference as int8_reference
from pyrite_kernels.matmul.cases import MatmulCase
from pyrite_kernels.quantize_rows import cases as rows_cases
from pyrite_kernels.quantize_rows import reference as rows_reference
from pyrite_kernels.quantize_rows.cases import RowsCase
from pyrite_kernels.roofline import Cost
from pyrite_kernels.testing import assert_close, device

from suite.core import Bench, Missing, Ready, Trial, same
from suite.names import dtype_name

CUBLAS = "cublas"
INT_MM = "torch int_mm + scales"
SCALED_MM = "torch scaled_mm"


def quantize_rows_benches(*, tiny: bool) -> list[Bench]:
    """Both codes, with a scale per row; no library has the op by itself."""
    made = []
    for quantize in (quantize_rows_int8, quantize_rows_fp8):
        for case in rows_cases.CASES[:2] if tiny else rows_cases.BENCH_CASES:
            cost = Cost(case.num_rows * (case.width * (case.dtype.itemsize + 1) + 4))
            sizes = {"rows": case.num_rows, "bytes": cost.bytes}
            trial = partial(_rows_trial, quantize, case)
            made.append(Bench(quantize.__name__, case.name, dtype_name(case.dtype), "copy", cost, trial, sizes=sizes))
    return made


def int8_benches(*, tiny: bool) -> list[Bench]:
    """`int8_matmul` beside cuBLAS in 16 bits, and beside torch's integer product followed by the scales."""
    cases = int8_cases.CASES[:2] if tiny else int8_cases.BENCH_CASES
    return [product_bench("int8_matmul", case, "int8", _int8_trial, (CUBLAS, INT_MM)) for case in cases]


def fp8_benches(*, tiny: bool) -> list[Bench]:
    """`fp8_matmul` beside cuBLAS in 16 bits, and beside torch's scaled product where scales are of channels."""
    made = []
    for case in (fp8_cases.CASES[0], fp8_cases.CASES[5]) if tiny else fp8_cases.BENCH_CASES:
        blocks = case.in_features // 128 * (case.rows + -(-case.out_features // 128))
        peers = (CUBLAS,) if case.blockwise else (CUBLAS, SCALED_MM)
        made.append(product_bench("fp8_matmul", case, "fp8", _fp8_trial, peers, 4 * blocks if case.blockwise else 0))
    return made


def product_bench(
    op: str, case: MatmulCase, kind: str, trial: Callable[..., Trial], peers: tuple[str, ...], scale_bytes: int = 0
) -> Bench:
    """A bench of 8-bit operands with scales per row and channel, or of `scale_bytes` in all."""
    rows, out_features, in_features = case.rows, case.out_features, case.in_features
    codes = in_features * (rows + out_features)
    out = rows * out_features * case.dtype.itemsize * (2 if case.residual else 1)
    scales = scale_bytes or 4 * (rows + out_features)
    cost = Cost(codes + scales + out, 2 * rows * out_features * in_features)
    sizes = {"rows": rows, "out_features": out_features, "in_features": in_features, "blockwise": int(scale_bytes > 0)}
    return Bench(op, case.name, f"{kind} -> {dtype_name(case.dtype)}", kind, cost, partial(trial, case), peers, sizes)


def cublas(
    case: MatmulCase,
    x: torch.Tensor,
    weight: torch.Tensor,
    residual: torch.Tensor | None,
    ours: Callable[[], torch.Tensor],
) -> Ready:
    """cuBLAS on floats that are about ours, in the output's dtype."""
    a, b = x.to(case.dtype), weight.to(case.dtype)

    def call() -> torch.Tensor:
        if residual is not None:
            return torch.addmm(residual, a, b.t())
        return torch.nn.functional.linear(a, b)

    same(call(), ours())
    return Ready(call)


def _rows_trial(quantize: Callable[..., tuple[torch.Tensor, torch.Tensor]], case: RowsCase, seed: int) -> Trial:
    make = torch.Generator().manual_seed(seed)
    x = torch.randn((case.num_rows, case.width), generator=make).to(device(), case.dtype)
    out, scale = quantize(x)

    def check() -> None:
        expected, expected_scale = getattr(rows_reference, quantize.__name__)(x)
        assert_close(scale, expected_scale, max_error=1e-5, rms_error=1e-5)
        assert_close(out.float(), expected.float(), max_error=1.0, rms_error=1e-2)

    return Trial(lambda: quantize(x, out=out, scale=scale), check)


def _int8_trial(case: MatmulCase, seed: int) -> Trial:
    x = int8_cases.make_inputs(case, seed)
    x.options.pop("bias", None)
    x_q, x_scale, weight_q, weight_scale = x.operands
    residual = x.options.get("residual")
    out = torch.empty((case.rows, case.out_features), dtype=case.dtype, device=x_q.device)

    def ours() -> torch.Tensor:
        return int8_matmul(*x.operands, **x.options)

    def check() -> None:
        assert_close(ours(), int8_reference.int8_matmul(*x.operands, **x.options), max_error=5e-2, rms_error=1e-2)

    def int_mm() -> Ready:
        if not x_q.is_cuda or case.rows <= 16:
            raise Missing("needs a GPU and more than 16 rows")
        product = torch._int_mm  # pyright: ignore[reportPrivateImportUsage]
        weight = weight_q.t()

        def call() -> torch.Tensor:
            y = (product(x_q, weight) * x_scale[:, None] * weight_scale).to(case.dtype)
            return y if residual is None else y + residual

        same(call(), ours())
        return Ready(call, "scales by torch, in kernels of their own")

    floats = (x_q * x_scale[:, None], weight_q * weight_scale[:, None])
    peers = {CUBLAS: partial(cublas, case, *floats, residual, ours), INT_MM: int_mm}
    return Trial(lambda: int8_matmul(*x.operands, residual=residual, out=out), check, peers)


def _fp8_trial(case: Fp8Case, seed: int) -> Trial:
    x = fp8_cases.make_inputs(case, seed)
    x_q, x_scale, weight_q, weight_scale = x.operands
    out = torch.empty((case.rows, case.out_features), dtype=case.dtype, device=x_q.device)

    def ours() -> torch.Tensor:
        return fp8_matmul(*x.operands, out_dtype=case.dtype)

    def check() -> None:
        expected = fp8_reference.fp8_matmul(*x.operands, out_dtype=case.dtype)
        assert_close(ours(), expected, max_error=5e-2, rms_error=1e-2)

    def scaled_mm() -> Ready:
        if not x_q.is_cuda or case.dtype != torch.bfloat16:
            raise Missing("needs a GPU, and bf16 results")
        product = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage]
        scales = {"scale_a": x_scale[:, None], "scale_b": weight_scale[None, :]}

        def call() -> torch.Tensor:
            return product(x_q, weight_q.t(), **scales, out_dtype=case.dtype, use_fast_accum=False)

        same(call(), ours())
        return Ready(call, "scales of rows and channels, without fast accumulation")

    if case.blockwise:
        floats = (
            x_q.float() * x_scale.repeat_interleave(128, 1),
            fp8_reference.block_floats(weight_q, weight_scale),
        )
    else:
        floats = (x_q.float() * x_scale[:, None], weight_q.float() * weight_scale[:, None])
    peers = {CUBLAS: partial(cublas, case, *floats, None, ours), SCALED_MM: scaled_mm}
    return Trial(lambda: fp8_matmul(*x.operands, out=out), check, peers)
