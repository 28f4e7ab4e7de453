"""Shapes and dtypes of `rms_norm`, for tests, benchmarks and ahead-of-time compilation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pyrite_kernels.aot import AotCase
from pyrite_kernels.attention_launch import FP8
from pyrite_kernels.rms_norm.kernel import rms_norm_kernel
from pyrite_kernels.rms_norm.launch import FP8_GROUP, codes_kind, config
from pyrite_kernels.small_launch import TYPE_NAMES, aot_case, wide_loads, wide_stores


@dataclass(frozen=True)
class NormCase:
    """Rows to norm."""

    name: str
    num_rows: int
    width: int
    dtype: torch.dtype
    weight_dtype: torch.dtype | None = torch.float32
    residual_dtype: torch.dtype | None = None
    weight_offset: float = 0.0


F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16

CASES = (
    NormCase("r1_w64_f32", 1, 64, F32),
    NormCase("r5_w60_f16", 5, 60, F16, F16),
    NormCase("r100_w100_f32_scaleless_residual", 100, 100, F32, None, F32),
    NormCase("r33_w128_f16_centred_residual", 33, 128, F16, F32, F16, 1.0),
    NormCase("r7_w256_bf16_residual", 7, 256, BF16, BF16, BF16),
    NormCase("r4_w2880_f16_residual_f32", 4, 2880, F16, F32, F32),
    NormCase("r2_w5120_bf16", 2, 5120, BF16, F32),
    NormCase("r2_w16384_f32", 2, 16384, F32),
    NormCase("r3_w1_f32", 3, 1, F32),
)
"""Small batches that reach every branch; all run in the interpreter."""

BENCH_CASES = tuple(
    NormCase(f"r{rows}_w{width}{'_residual' if residual else ''}", rows, width, BF16, F32, BF16 if residual else None)
    for rows in (1, 64, 8192)
    for width in (2048, 4096, 8192)
    for residual in (False, True)
)
"""Sizes of real models: decode, a large batch, and a prefill of 64 MB and more."""


def aot_cases(arch: str) -> list[AotCase]:
    """What is compiled ahead of time for a target of `aot.ARCHS`."""
    shapes: list[tuple[NormCase, torch.dtype, int | None]] = [
        (NormCase("bf16_w4096_residual", 1, 4096, BF16, F32, BF16), BF16, None),
        (NormCase("bf16_w2880_scaleless", 1, 2880, BF16, None), BF16, None),
        (NormCase("f16_w128", 1, 128, F16, F16), F16, None),
        (NormCase("f32_w16384_residual", 1, 16384, F32, F32, F32), F32, None),
        (NormCase("bf16_w16384_residual", 1, 16384, BF16, F32, BF16), BF16, None),
        (NormCase("int8_bf16_w4096_residual", 1, 4096, BF16, F32, BF16), torch.int8, None),
        (NormCase("fp8_bf16_w4096_residual", 1, 4096, BF16, F32, BF16), FP8, None),
        (NormCase("fp8_bf16_w5120_block128", 1, 5120, BF16, F32), FP8, FP8_GROUP),
        (NormCase("fp8_bf16_w16384_block128_residual", 1, 16384, BF16, F32, BF16), FP8, FP8_GROUP),
    ]
    return [_aot(arch, *shape) for shape in shapes]


def _aot(arch: str, case: NormCase, out: torch.dtype, group: int | None) -> AotCase:
    block_r, block_w, num_warps = config(arch, case.width)
    kind = codes_kind(arch, out)
    constexprs = {
        "WIDTH": case.width,
        "BLOCK_R": block_r,
        "BLOCK_W": block_w,
        "HAS_WEIGHT": case.weight_dtype is not None,
        "HAS_RESIDUAL": case.residual_dtype is not None,
        "CODES": kind,
        "GROUP": group or case.width,
    }
    row = "*" + TYPE_NAMES[case.dtype]
    types = {
        "x_ptr": row,
        "weight_ptr": "*" + TYPE_NAMES[case.weight_dtype or case.dtype],
        "residual_ptr": "*" + TYPE_NAMES[case.residual_dtype or case.dtype],
        "out_ptr": {"none": row, "int8": "*i8"}.get(kind, "*u8"),
        "scale_ptr": "*fp32",
        "eps": "fp32",
        "weight_offset": "fp32",
    }
    converts = (r"cvt\.rn\.satfinite\.e4m3x2\.f32",) if kind == "fp8" else ()
    expect = wide_loads(arch) + (wide_stores(arch) if kind == "none" else converts)
    return aot_case(
        case.name,
        rms_norm_kernel,
        types,
        constexprs,
        num_warps=num_warps,
        unaligned=("stride_scale",),
        expect=expect,
    )
