"""Shapes and dtypes of `quantize_rows`, for tests, benchmarks and ahead-of-time compilation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pyrite_kernels.aot import AotCase
from pyrite_kernels.attention_launch import FP8
from pyrite_kernels.quantize_rows.kernel import groups_kernel, rows_kernel
from pyrite_kernels.quantize_rows.launch import groups_config, rows_config
from pyrite_kernels.rms_norm.launch import FP8_GROUP, codes_kind
from pyrite_kernels.small_launch import TYPE_NAMES, aot_case, wide_loads


@dataclass(frozen=True)
class RowsCase:
    """Rows to quantize."""

    name: str
    num_rows: int
    width: int
    dtype: torch.dtype


F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16

CASES = (
    RowsCase("r1_w64_f32", 1, 64, F32),
    RowsCase("r5_w60_f16", 5, 60, F16),
    RowsCase("r33_w128_f16", 33, 128, F16),
    RowsCase("r3_w2304_f32", 3, 2304, F32),
    RowsCase("r2_w17408_f16", 2, 17408, F16),
    RowsCase("r3_w1_f32", 3, 1, F32),
)

BENCH_CASES = tuple(
    RowsCase(f"r{rows}_w{width}", rows, width, BF16) for rows in (1, 64, 4096) for width in (4096, 14336)
)
"""Sizes of real models: what attention and the gated unit give."""


def aot_cases(arch: str) -> list[AotCase]:
    """What is compiled ahead of time for a target of `aot.ARCHS`."""
    shapes = [
        (torch.int8, None, 4096, BF16),
        (torch.int8, None, 14336, BF16),
        (torch.int8, None, 128, F16),
        (FP8, None, 14336, BF16),
        (FP8, None, 14336, F32),
        (FP8, FP8_GROUP, 14336, BF16),
        (FP8, FP8_GROUP, 2816, F32),
    ]
    return [_aot(arch, *shape) for shape in shapes]


def _aot(arch: str, out: torch.dtype, group: int | None, width: int, dtype: torch.dtype) -> AotCase:
    block_r, block_w, num_warps = rows_config(arch, width) if group is None else groups_config(arch, width)
    kind = codes_kind(arch, out)
    constexprs: dict[str, Any] = {"WIDTH": width, "BLOCK_R": block_r, "BLOCK_W": block_w, "CODES": kind}
    constexprs |= {} if group is None else {"GROUP": group}
    types = {
        "x_ptr": "*" + TYPE_NAMES[dtype],
        "out_ptr": "*i8" if out == torch.int8 else "*u8",
        "scale_ptr": "*fp32",
    }
    converts = (r"cvt\.rn\.satfinite\.e4m3x2\.f32",) if kind == "fp8" else ()
    name = f"{'int8' if out == torch.int8 else 'fp8'}_{TYPE_NAMES[dtype]}_w{width}{'' if group is None else '_g128'}"
    kernel = rows_kernel if group is None else groups_kernel
    return aot_case(
        name,
        kernel,
        types,
        constexprs,
        num_warps=num_warps,
        unaligned=("stride_scale",),
        expect=wide_loads(arch) + converts,
    )
