"""Shapes and dtypes of `matmul` and `matmul_glu`, for tests, benchmarks and ahead-of-time compilation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pyrite_kernels.aot import AotCase
from pyrite_kernels.attention_launch import dot_precision
from pyrite_kernels.matmul.kernel import merge_kernel, split_kernel, tiled_kernel
from pyrite_kernels.matmul.launch import GROUP_M, MERGE_BLOCK, MatmulConfig, stream_config, tile_configs
from pyrite_kernels.testing import device

ROWS = (1, 2, 7, 16, 33, 65, 130)
"""Numbers of rows over which a row's bits are compared: every form and every tile of rows."""


@dataclass(frozen=True)
class MatmulCase:
    """One product.

    Args:
        name: for test ids.
        rows, out_features, in_features: the sizes; for a GLU out_features counts gate and up.
        dtype: of x, weight and residual.
        bias, residual: whether there is one.
    """

    name: str
    rows: int
    out_features: int
    in_features: int
    dtype: torch.dtype = torch.float32
    bias: bool = False
    residual: bool = False


F16, BF16 = torch.float16, torch.bfloat16
CASES = (
    MatmulCase("one_row", 1, 64, 64),
    MatmulCase("one_row_two_spans_f16", 1, 66, 1056, F16, bias=True, residual=True),
    MatmulCase("odd", 5, 30, 100, bias=True),
    MatmulCase("one_output", 3, 1, 40, residual=True),
    MatmulCase("33_rows_f16", 33, 70, 72, F16, residual=True),
    MatmulCase("many_rows", 130, 140, 96, bias=True, residual=True),
    MatmulCase("many_rows_two_spans_f16", 130, 40, 1040, F16, bias=True),
)

GLU_CASES = (
    MatmulCase("one_row", 1, 128, 64),
    MatmulCase("two_spans_f16", 6, 44, 1100, F16, bias=True),
    MatmulCase("many_rows", 67, 142, 80, bias=True),
    MatmulCase("many_rows_two_spans_f16", 67, 36, 1040, F16),
)

BENCH_CASES = (
    MatmulCase("decode_m1_qkv_8b", 1, 6144, 4096, BF16),
    MatmulCase("decode_m1_down_8b", 1, 4096, 14336, BF16, residual=True),
    MatmulCase("decode_m16_gate_up_8b", 16, 28672, 4096, BF16),
    MatmulCase("decode_m1_head_8b", 1, 128256, 4096, BF16),
    MatmulCase("prefill_m512_qkv_8b", 512, 6144, 4096, BF16),
    MatmulCase("prefill_m2048_gate_up_8b", 2048, 28672, 4096, BF16),
    MatmulCase("prefill_m4096_down_8b", 4096, 4096, 14336, BF16, residual=True),
    MatmulCase("prefill_m8192_square", 8192, 8192, 8192, BF16),
)
"""Sizes of real models, for a GPU."""


@dataclass
class MatmulInputs:
    """Random inputs: x and weight, and the options that the case has."""

    x: torch.Tensor
    weight: torch.Tensor
    options: dict[str, torch.Tensor]


def make_inputs(case: MatmulCase, seed: int = 0) -> MatmulInputs:
    """Normal numbers, the weight scaled so that outputs are of order 1; the same on every device."""
    make = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0, dtype: torch.dtype = case.dtype) -> torch.Tensor:
        return (torch.randn(shape, generator=make) * scale).to(device(), dtype)

    x = normal(case.rows, case.in_features)
    weight = normal(case.out_features, case.in_features, scale=case.in_features**-0.5)
    options = {}
    if case.bias:
        options["bias"] = normal(case.out_features, dtype=torch.float32)
    if case.residual:
        options["residual"] = normal(case.rows, case.out_features)
    return MatmulInputs(x, weight, options)


TYPE_NAMES = {torch.float32: "fp32", F16: "fp16", BF16: "bf16"}

PRODUCTS = {
    "sm_80": {2: r"mma\.sync\.aligned\.m16n8k16", 4: r"mma\.sync\.aligned\.m16n8k8\S+tf32"},
    "sm_89": {2: r"mma\.sync\.aligned\.m16n8k16", 4: r"mma\.sync\.aligned\.m16n8k8\S+tf32"},
    "sm_90": {2: r"wgmma\.mma_async\S+\.m64n\d+k16", 4: r"wgmma\.mma_async\S+\.m64n\d+k8\S+tf32"},
    "sm_100": {2: r"tcgen05\.mma\S+kind::f16", 4: r"tcgen05\.mma\S+kind::tf32"},
    "gfx942": {2: r"v_mfma_f32_32x32x8", 4: r"v_mfma_f32_32x32x2"},
}
"""By bytes of an operand: the one matrix instruction that both forms must use, lest their bits differ."""

WIDE_COPY = r"cp\.async\.cg\.shared\.global \[[^\]]+\], \[[^\]]+\], 0x10"
"""An asynchronous copy of 16 bytes."""


def aot_case(
    name: str,
    kernel: Any,
    arch: str,
    config: MatmulConfig,
    dtype: torch.dtype,
    constexprs: dict[str, Any],
    pointers: dict[str, str] | None = None,
    expect: tuple[str, ...] = (),
) -> AotCase:
    """A case of a kernel whose pointers have `dtype` unless named, and whose sizes are multiples of 16."""
    named = {"part_ptr": "*fp32", "bias_ptr": "*fp32"} | (pointers or {})

    def kind(parameter: str) -> str:
        if parameter in constexprs:
            return "constexpr"
        default = "*" + TYPE_NAMES[dtype] if parameter.endswith("_ptr") else "i32"
        return named.get(parameter, default)

    signature = {parameter: kind(parameter) for parameter in kernel.arg_names}
    return AotCase(
        name=name,
        kernel=kernel,
        signature=signature,
        constexprs=constexprs,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        aligned=tuple(
            p for p, k in signature.items() if k != "constexpr" and p not in ("M", "num_spans", "num_blocks")
        ),
        expect=expect,
    )


def expected(arch: str, dtype: torch.dtype) -> tuple[str, ...]:
    """What the assembly of a product must have: the matrix instruction, and wide copies on NVIDIA."""
    return (PRODUCTS[arch][dtype.itemsize], *(() if arch == "gfx942" else (WIDE_COPY,)))


def aot_cases(arch: str) -> list[AotCase]:
    """What is compiled ahead of time for a target of `aot.ARCHS`."""
    return [*_stream_cases(arch), *_tile_cases(arch), *_merge_cases(arch)]


def _constexprs(arch: str, config: MatmulConfig, even_k: bool = True) -> dict[str, Any]:
    return {
        "BLOCK_N": config.block_n,
        "BLOCK_M": config.block_m,
        "BLOCK_K": config.block_k,
        "EVEN_K": even_k,
        "PRECISION": dot_precision(arch),
    }


def _stream_cases(arch: str) -> Iterator[AotCase]:
    for dtype, rows, even_k in (
        (BF16, 16, True),
        (BF16, 32, True),
        (BF16, 64, True),
        (F16, 16, False),
        (torch.float32, 16, True),
    ):
        config = stream_config(arch, dtype.itemsize, rows)
        name = f"stream_{TYPE_NAMES[dtype]}_m{rows}{'' if even_k else '_tail'}"
        yield aot_case(
            name, split_kernel, arch, config, dtype, _constexprs(arch, config, even_k), expect=expected(arch, dtype)
        )


def _tile_cases(arch: str) -> Iterator[AotCase]:
    """Every committed tile, and the streaming configuration with the epilogue of one span."""
    for dtype in (BF16, torch.float32):
        for glu in (False, True):
            for one_span in (True, False):
                configs = tile_configs(arch, dtype.itemsize, one_span, glu)
                configs += (stream_config(arch, dtype.itemsize, 16),) if one_span else ()
                for config in dict.fromkeys(configs):
                    constexprs = _constexprs(arch, config) | {
                        "GROUP_M": GROUP_M,
                        "ONE_SPAN": one_span,
                        "HAS_BIAS": True,
                        "HAS_RESIDUAL": not glu,
                        "GLU": glu,
                    }
                    name = f"tile_{TYPE_NAMES[dtype]}_{config.block_n}x{config.block_m}"
                    name += ("_glu" if glu else "") + ("" if one_span else "_spans")
                    yield aot_case(name, tiled_kernel, arch, config, dtype, constexprs, expect=expected(arch, dtype))


def _merge_cases(arch: str) -> Iterator[AotCase]:
    config = MatmulConfig(0, 0, 0, num_warps=4, num_stages=1)
    for glu in (False, True):
        constexprs = {"BLOCK": MERGE_BLOCK, "HAS_BIAS": True, "HAS_RESIDUAL": not glu, "GLU": glu}
        yield aot_case(f"merge{'_glu' if glu else ''}", merge_kernel, arch, config, BF16, constexprs)
