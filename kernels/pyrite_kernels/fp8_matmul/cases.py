"""Shapes, dtypes and kinds of scales of `fp8_matmul`, for tests, benchmarks and ahead-of-time compilation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pyrite_kernels.aot import AotCase
from pyrite_kernels.attention_launch import FP8, dot_precision
from pyrite_kernels.fp8_matmul.kernel import merge_kernel, split_kernel, tiled_kernel
from pyrite_kernels.fp8_matmul.launch import FP8_BLOCK, operand_kind, stream_config, tile_configs
from pyrite_kernels.matmul.cases import BF16, F16, WIDE_COPY, MatmulCase, aot_case
from pyrite_kernels.matmul.launch import GROUP_M, MERGE_BLOCK, MatmulConfig
from pyrite_kernels.rms_norm.reference import fp8_codes
from pyrite_kernels.testing import device


@dataclass(frozen=True)
class Fp8Case(MatmulCase):
    """`MatmulCase`, whose dtype is that of output and residual, and whether scales are of blocks."""

    blockwise: bool = False


CASES = (
    Fp8Case("one_row", 1, 64, 64),
    Fp8Case("one_row_two_spans_f16", 1, 66, 1056, F16, bias=True, residual=True),
    Fp8Case("odd", 5, 30, 100, bias=True),
    Fp8Case("33_rows_f16", 33, 70, 72, F16, residual=True),
    Fp8Case("many_rows", 70, 140, 96, bias=True, residual=True),
    Fp8Case("blocks_one_row", 1, 200, 256, blockwise=True),
    Fp8Case("blocks_two_spans_f16", 3, 130, 1152, F16, bias=True, residual=True, blockwise=True),
    Fp8Case("blocks_one_output", 2, 1, 128, blockwise=True),
    Fp8Case("blocks_many_rows", 67, 140, 256, bias=True, residual=True, blockwise=True),
    Fp8Case("blocks_many_rows_two_spans", 66, 40, 1024, blockwise=True),
)

BENCH_CASES = tuple(
    Fp8Case(f"{name}{'_blocks' if blockwise else ''}", *shape, BF16, blockwise=blockwise)
    for blockwise in (False, True)
    for name, shape in (
        ("decode_m1_qkv_8b", (1, 6144, 4096)),
        ("decode_m16_gate_up_8b", (16, 28672, 4096)),
        ("prefill_m512_qkv_8b", (512, 6144, 4096)),
        ("prefill_m2048_gate_up_8b", (2048, 28672, 4096)),
        ("prefill_m4096_down_8b", (4096, 4096, 14336)),
        ("prefill_m8192_square", (8192, 8192, 8192)),
    )
)
"""Sizes of real models, for a GPU."""


@dataclass
class Inputs:
    """Random operands, in the order of the arguments, and the options that the case has."""

    operands: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    options: dict[str, Any]


def quantize_blocks(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes, scales) of a weight f32 with a scale, max / 448, for each 128 x 128."""
    rows = weight.shape[0]
    padded = torch.nn.functional.pad(weight, (0, 0, 0, -rows % FP8_BLOCK))
    blocks = padded.unflatten(1, (-1, FP8_BLOCK)).unflatten(0, (-1, FP8_BLOCK)).transpose(1, 2)
    scale = blocks.abs().amax(dim=(2, 3)) / 448.0
    codes = (blocks / scale[:, :, None, None]).clamp(-448, 448).to(FP8)
    return codes.transpose(1, 2).reshape(padded.shape)[:rows].contiguous(), scale


def make_inputs(case: Fp8Case, seed: int = 0) -> Inputs:
    """Normal numbers, quantized, with outputs of order 1; blocks of a weight differ in size by up to 4."""
    make = torch.Generator().manual_seed(seed)
    x = torch.randn((case.rows, case.in_features), generator=make)
    weight = torch.randn((case.out_features, case.in_features), generator=make) * case.in_features**-0.5
    if case.blockwise:
        sizes = 0.5 + 1.5 * torch.rand((1 + case.out_features // 128, case.in_features // 128), generator=make)
        weight *= sizes.repeat_interleave(128, 0).repeat_interleave(128, 1)[: case.out_features]
        codes = (*fp8_codes(x, FP8_BLOCK, None, None), *quantize_blocks(weight))
    else:
        codes = (*fp8_codes(x, None, None, None), *fp8_codes(weight, None, None, None))

    def normal(*shape: int, dtype: torch.dtype = case.dtype) -> torch.Tensor:
        return torch.randn(shape, generator=make).to(device(), dtype)

    options: dict[str, Any] = {"out_dtype": case.dtype}
    if case.bias:
        options["bias"] = normal(case.out_features, dtype=torch.float32)
    if case.residual:
        options["residual"] = normal(case.rows, case.out_features)
    x_q, x_scale, weight_q, weight_scale = (t.to(device()) for t in codes)
    return Inputs((x_q, x_scale, weight_q, weight_scale), options)


PRODUCTS = {
    "sm_80": r"mma\.sync\.aligned\.m16n8k16\S+f16\.f16",
    "sm_89": r"mma\.sync\.aligned\.m16n8k32\S+e4m3\.e4m3",
    "sm_90": r"wgmma\.mma_async\S+\.m64n\d+k32\.f32\.e4m3\.e4m3",
    "sm_100": r"tcgen05\.mma\S+kind::f8f6f4",
    "gfx942": r"v_mfma_f32_32x32x8_?f16",
}
"""The one matrix instruction that both forms must use: e4m3's own, and f16's where the part has none of this format."""

POINTERS = {"x_ptr": "*u8", "w_ptr": "*u8", "x_scale_ptr": "*fp32", "w_scale_ptr": "*fp32"}


def aot_cases(arch: str) -> list[AotCase]:
    """What is compiled ahead of time for a target of `aot.ARCHS`."""
    return [*_stream_cases(arch), *_tile_cases(arch), *_merge_cases(arch)]


def _expected(arch: str) -> tuple[str, ...]:
    return (PRODUCTS[arch], *(() if arch == "gfx942" else (WIDE_COPY,)))


def _constexprs(arch: str, config: MatmulConfig, blockwise: bool, even_k: bool = True) -> dict[str, Any]:
    return {
        "BLOCK_N": config.block_n,
        "BLOCK_M": config.block_m,
        "EVEN_K": even_k,
        "BLOCKWISE": blockwise,
        "CODES": operand_kind(arch),
        "PRECISION": dot_precision(arch),
    }


def _stream_cases(arch: str) -> Iterator[AotCase]:
    for rows, blockwise, even_k in ((16, False, True), (16, True, True), (64, True, True), (16, False, False)):
        config = stream_config(arch, rows)
        name = f"stream_{'blocks_' if blockwise else ''}m{rows}{'' if even_k else '_tail'}"
        constexprs = _constexprs(arch, config, blockwise, even_k)
        yield aot_case(name, split_kernel, arch, config, BF16, constexprs, POINTERS, _expected(arch))


def _tile_cases(arch: str) -> Iterator[AotCase]:
    """Every committed tile, and the streaming configuration with the epilogue of one span."""
    for blockwise in (False, True):
        for one_span in (True, False):
            configs = tile_configs(arch, one_span, blockwise) + ((stream_config(arch, 16),) if one_span else ())
            for config in dict.fromkeys(configs):
                constexprs = _constexprs(arch, config, blockwise) | {
                    "GROUP_M": GROUP_M,
                    "ONE_SPAN": one_span,
                    "HAS_BIAS": not blockwise,
                    "HAS_RESIDUAL": True,
                }
                name = f"tile_{'blocks_' if blockwise else ''}{config.block_n}x{config.block_m}"
                name += "" if one_span else "_spans"
                yield aot_case(name, tiled_kernel, arch, config, BF16, constexprs, POINTERS, _expected(arch))


def _merge_cases(arch: str) -> Iterator[AotCase]:
    for blockwise in (False, True):
        constexprs = {"BLOCK": MERGE_BLOCK, "BLOCKWISE": blockwise, "HAS_BIAS": True, "HAS_RESIDUAL": True}
        config = MatmulConfig(0, 0, 0, num_warps=4, num_stages=1)
        name = f"merge{'_blocks' if blockwise else ''}"
        yield aot_case(name, merge_kernel, arch, config, BF16, constexprs, POINTERS)
