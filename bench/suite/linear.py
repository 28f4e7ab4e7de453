"""Benchmarks of the products by float and by integer weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from pyrite_kernels import matmul, matmul_glu, qmatmul
from pyrite_kernels.matmul import cases as float_cases
from pyrite_kernels.matmul import reference as float_reference
from pyrite_kernels.matmul.cases import MatmulCase, MatmulInputs
from pyrite_kernels.qmatmul import cases as integer_cases
from pyrite_kernels.qmatmul import reference as integer_reference
from pyrite_kernels.qmatmul.cases import QuantizedCase
from pyrite_kernels.quantized import QuantizedWeight
from pyrite_kernels.roofline import matmul_cost, quantized_bytes
from pyrite_kernels.testing import assert_close

from suite.core import Bench, Missing, Ready, Trial, same
from suite.names import KINDS, dtype_name

CUBLAS = "cublas"
CUBLAS_SILU = "cublas + torch silu"
TINYGEMM = "torch int4 tinygemm"
GEMLITE = "gemlite"
TINYGEMM_K = 8
"""Tiles of 16 inputs that tinygemm packs together."""


def matmul_benches(*, tiny: bool) -> list[Bench]:
    """`matmul` beside cuBLAS, which adds the residual too."""
    return [_bench("matmul", case, _float_trial, (CUBLAS,)) for case in _chosen(float_cases, tiny)]


def glu_benches(*, tiny: bool) -> list[Bench]:
    """`matmul_glu` beside cuBLAS followed by torch's SiLU and product."""
    cases = float_cases.GLU_CASES[:2] if tiny else [c for c in float_cases.BENCH_CASES if "gate_up" in c.name]
    return [_bench("matmul_glu", case, _glu_trial, (CUBLAS_SILU,)) for case in cases]


def qmatmul_benches(*, tiny: bool) -> list[Bench]:
    """`qmatmul` beside cuBLAS with the float weight, and beside kernels for the same integers."""
    made = []
    for case in _chosen(integer_cases, tiny):
        peers = (CUBLAS, *((TINYGEMM,) if case.bits == 4 else ()), GEMLITE)
        made.append(_bench("qmatmul", case, _integer_trial, peers))
    return made


def _chosen(module: Any, tiny: bool) -> Any:
    return module.CASES[:2] if tiny else module.BENCH_CASES


def _bench(op: str, case: MatmulCase, trial: Any, peers: tuple[str, ...]) -> Bench:
    """Sizes of a GLU: its output is half as wide as the weight."""
    sizes = {"rows": case.rows, "out_features": case.out_features, "in_features": case.in_features}
    dtype, weight_bytes = dtype_name(case.dtype), None
    if isinstance(case, QuantizedCase):
        sizes |= {"bits": case.bits, "group_size": case.group_size}
        weight_bytes = quantized_bytes(case.out_features, case.in_features, case.bits, case.group_size)
        dtype += f" x int{case.bits} g{case.group_size}{' symmetric' if case.symmetric else ''}"
    cost = matmul_cost(
        case.rows,
        case.out_features,
        case.in_features,
        itemsize=case.dtype.itemsize,
        weight_bytes=weight_bytes,
        residual=case.residual,
        out_columns=case.out_features // 2 if op == "matmul_glu" else None,
    )
    return Bench(op, case.name, dtype, KINDS[case.dtype], cost, partial(trial, case), peers, sizes)


def _float_trial(case: MatmulCase, seed: int) -> Trial:
    x = float_cases.make_inputs(case, seed)
    out = torch.empty((case.rows, case.out_features), dtype=case.dtype, device=x.x.device)

    def check() -> None:
        got = matmul(x.x, x.weight, **x.options)
        assert_close(got, float_reference.matmul(x.x, x.weight, **x.options), max_error=5e-2, rms_error=1e-2)

    return Trial(
        lambda: matmul(x.x, x.weight, **x.options, out=out),
        check,
        {CUBLAS: partial(_cublas, x, lambda: matmul(x.x, x.weight, **x.options))},
    )


def _glu_trial(case: MatmulCase, seed: int) -> Trial:
    x = float_cases.make_inputs(case, seed)
    x.options.pop("residual", None)
    out = torch.empty((case.rows, case.out_features // 2), dtype=case.dtype, device=x.x.device)

    def check() -> None:
        got = matmul_glu(x.x, x.weight, **x.options)
        assert_close(got, float_reference.matmul_glu(x.x, x.weight, **x.options), max_error=5e-2, rms_error=1e-2)

    def peer() -> Ready:
        bias = _cast(x.options.get("bias"), x.x.dtype)

        def call() -> torch.Tensor:
            gate, up = torch.nn.functional.linear(x.x, x.weight, bias).chunk(2, dim=1)
            return torch.nn.functional.silu(gate) * up

        same(call(), matmul_glu(x.x, x.weight, **x.options))
        return Ready(call)

    return Trial(lambda: matmul_glu(x.x, x.weight, **x.options, out=out), check, {CUBLAS_SILU: peer})


def _integer_trial(case: QuantizedCase, seed: int) -> Trial:
    x, qweight = integer_cases.make_inputs(case, seed)
    out = torch.empty((case.rows, case.out_features), dtype=case.dtype, device=x.x.device)
    x.weight = qweight.dequantize().to(case.dtype)  # what the float peer multiplies by, so that results agree

    def ours() -> torch.Tensor:
        return qmatmul(x.x, qweight, **x.options)

    def check() -> None:
        assert_close(ours(), integer_reference.qmatmul(x.x, qweight, **x.options), max_error=5e-2, rms_error=1e-2)

    peers = {
        CUBLAS: partial(_cublas, x, ours),
        TINYGEMM: partial(_tinygemm, x, qweight, ours),
        GEMLITE: partial(_gemlite, x, qweight, ours),
    }
    return Trial(lambda: qmatmul(x.x, qweight, **x.options, out=out), check, peers)


# Peers.


def _cast(x: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if x is None else x.to(dtype)


def _cublas(x: MatmulInputs, ours: Any) -> Ready:
    bias, residual = (_cast(x.options.get(name), x.x.dtype) for name in ("bias", "residual"))

    def call() -> torch.Tensor:
        if residual is not None and bias is None:
            return torch.addmm(residual, x.x, x.weight.t())
        got = torch.nn.functional.linear(x.x, x.weight, bias)
        return got if residual is None else got + residual

    same(call(), ours())
    return Ready(call)


def _tinygemm(x: MatmulInputs, qweight: QuantizedWeight, ours: Any) -> Ready:
    """Its weights are (code - 8) * scale + zero, scale and zero in bf16; no epilogue."""
    if not x.x.is_cuda or x.x.dtype != torch.bfloat16:
        raise Missing("needs bf16 on a GPU")
    codes, scales, zeros = qweight.to_canonical()
    bytes_of_two = (codes[:, ::2] << 4) | codes[:, 1::2]
    packed = torch.ops.aten._convert_weight_to_int4pack(bytes_of_two.contiguous(), TINYGEMM_K)
    middle = torch.full_like(scales, 8.0) if zeros is None else zeros.to(scales.dtype)
    pairs = torch.stack((scales.float(), (8.0 - middle.float()) * scales.float()), 2)
    pairs = pairs.transpose(0, 1).contiguous().to(torch.bfloat16)  # [groups, out_features, 2]

    def call() -> torch.Tensor:
        return torch.ops.aten._weight_int4pack_mm(x.x, packed, qweight.group_size, pairs)

    same(_with_epilogue(call(), x), ours())
    return Ready(call)


def _gemlite(x: MatmulInputs, qweight: QuantizedWeight, ours: Any) -> Ready:
    """The Triton kernels of mobiusml/gemlite, tuned by themselves on their first call; no epilogue."""
    if not x.x.is_cuda:
        raise Missing("needs a GPU")
    try:
        from gemlite import DType, GemLiteLinear
    except ImportError as error:
        raise Missing("not installed: pip install gemlite") from error
    codes, scales, zeros = qweight.to_canonical()
    kind = {torch.bfloat16: DType.BF16, torch.float16: DType.FP16}[x.x.dtype]
    out_features, in_features = qweight.shape
    layer = GemLiteLinear(
        qweight.bits,
        group_size=qweight.group_size,
        in_features=in_features,
        out_features=out_features,
        input_dtype=kind,
        output_dtype=kind,
    )
    middle = torch.full_like(scales, float(1 << (qweight.bits - 1))) if zeros is None else zeros
    layer.pack(codes, scales.to(x.x.dtype), middle.to(x.x.dtype), None)
    same(_with_epilogue(layer(x.x), x), ours())
    return Ready(lambda: layer(x.x))


def _with_epilogue(got: torch.Tensor, x: MatmulInputs) -> torch.Tensor:
    """A peer's product with what we add, for the comparison alone."""
    for name in ("bias", "residual"):
        if name in x.options:
            got = got.float() + x.options[name].float()
    return got
