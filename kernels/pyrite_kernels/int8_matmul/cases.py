"""Shapes and dtypes of `int8_matmul`, for tests, benchmarks and ahead-of-time compilation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton

from pyrite_kernels.aot import AotCase
from pyrite_kernels.int8_matmul.kernel import merge_kernel, split_kernel, tiled_kernel
from pyrite_kernels.int8_matmul.launch import stream_config, tile_configs
from pyrite_kernels.matmul.cases import BF16, F16, WIDE_COPY, MatmulCase, aot_case
from pyrite_kernels.matmul.launch import GROUP_M, MERGE_BLOCK, MatmulConfig
from pyrite_kernels.testing import device

CASES = (
    MatmulCase("one_row", 1, 64, 64),
    MatmulCase("one_row_two_spans_f16", 1, 66, 1056, F16, bias=True, residual=True),
    MatmulCase("odd", 5, 30, 100, bias=True),
    MatmulCase("one_output", 3, 1, 40, residual=True),
    MatmulCase("33_rows_f16", 33, 70, 72, F16, residual=True),
    MatmulCase("many_rows", 130, 140, 96, bias=True, residual=True),
    MatmulCase("many_rows_two_spans_f16", 70, 40, 1040, F16, bias=True),
)
"""`MatmulCase.dtype` is that of the output and the residual."""

BENCH_CASES = (
    MatmulCase("decode_m1_qkv_8b", 1, 6144, 4096, BF16),
    MatmulCase("decode_m16_gate_up_8b", 16, 28672, 4096, BF16),
    MatmulCase("decode_m16_down_8b", 16, 4096, 14336, BF16, residual=True),
    MatmulCase("prefill_m512_qkv_8b", 512, 6144, 4096, BF16),
    MatmulCase("prefill_m2048_gate_up_8b", 2048, 28672, 4096, BF16),
    MatmulCase("prefill_m4096_down_8b", 4096, 4096, 14336, BF16, residual=True),
    MatmulCase("prefill_m8192_square", 8192, 8192, 8192, BF16),
)
"""Sizes of real models, for a GPU."""


@dataclass
class Inputs:
    """Random operands, in the order of the arguments, and the options that the case has."""

    operands: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    options: dict[str, Any]


def make_inputs(case: MatmulCase, seed: int = 0) -> Inputs:
    """Codes over the whole range, -128 included, with scales that make outputs of order 1."""
    make = torch.Generator().manual_seed(seed)

    def codes(*shape: int) -> torch.Tensor:
        return torch.randint(-128, 128, shape, generator=make, dtype=torch.int8).to(device())

    def positive(size: int, scale: float) -> torch.Tensor:
        return (scale * (0.5 + torch.rand(size, generator=make))).to(device())

    def normal(*shape: int, dtype: torch.dtype = case.dtype) -> torch.Tensor:
        return torch.randn(shape, generator=make).to(device(), dtype)

    operands = (
        codes(case.rows, case.in_features),
        positive(case.rows, 1 / 74),
        codes(case.out_features, case.in_features),
        positive(case.out_features, case.in_features**-0.5 / 74),
    )
    options: dict[str, Any] = {"out_dtype": case.dtype}
    if case.bias:
        options["bias"] = normal(case.out_features, dtype=torch.float32)
    if case.residual:
        options["residual"] = normal(case.rows, case.out_features)
    return Inputs(operands, options)


PRODUCTS = {
    "sm_80": r"mma\.sync\.aligned\.m16n8k32\S+s8\.s8",
    "sm_89": r"mma\.sync\.aligned\.m16n8k32\S+s8\.s8",
    "sm_90": r"wgmma\.mma_async\S+\.m64n\d+k32\.s32\.s8\.s8",
    "sm_100": r"tcgen05\.mma\S+kind::i8",
    "gfx942": r"v_mfma_i32_\d+x\d+x\d+_i8",
}
"""The matrix instruction of a target."""

if triton.__version__.startswith("3.6."):  # which has no newer integer product for sm_100
    PRODUCTS["sm_100"] = PRODUCTS["sm_80"]

POINTERS = {"x_ptr": "*i8", "w_ptr": "*i8", "x_scale_ptr": "*fp32", "w_scale_ptr": "*fp32", "part_ptr": "*i32"}


def aot_cases(arch: str) -> list[AotCase]:
    """What is compiled ahead of time for a target of `aot.ARCHS`."""
    return [*_product_cases(arch), _merge_case(arch)]


def _product_cases(arch: str) -> Iterator[AotCase]:
    """Every committed configuration, and a stream with the epilogue."""
    expect = (PRODUCTS[arch], *(() if arch == "gfx942" else (WIDE_COPY,)))
    for rows, even_k in ((16, True), (32, True), (64, True), (16, False)):
        config = stream_config(arch, rows)
        name = f"stream_m{rows}{'' if even_k else '_tail'}"
        yield aot_case(name, split_kernel, arch, config, BF16, _constexprs(config, even_k), POINTERS, expect)
    for config in (*tile_configs(arch), stream_config(arch, 16)):
        constexprs = _constexprs(config) | {"GROUP_M": GROUP_M, "HAS_BIAS": True, "HAS_RESIDUAL": True}
        name = f"tile_{config.block_n}x{config.block_m}"
        yield aot_case(name, tiled_kernel, arch, config, BF16, constexprs, POINTERS, expect)


def _constexprs(config: MatmulConfig, even_k: bool = True) -> dict[str, Any]:
    return {"BLOCK_N": config.block_n, "BLOCK_M": config.block_m, "BLOCK_K": config.block_k, "EVEN_K": even_k}


def _merge_case(arch: str) -> AotCase:
    constexprs = {"BLOCK": MERGE_BLOCK, "HAS_BIAS": True, "HAS_RESIDUAL": True}
    return aot_case("merge", merge_kernel, arch, MatmulConfig(0, 0, 0, 4, 1), BF16, constexprs, POINTERS)
