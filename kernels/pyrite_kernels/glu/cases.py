"""Shapes and dtypes of `glu` and `gate`, for tests, benchmarks and ahead-of-time compilation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pyrite_kernels.aot import AotCase
from pyrite_kernels.glu.kernel import glu_kernel
from pyrite_kernels.small_launch import (
    TYPE_NAMES,
    aot_case,
    elementwise_tile,
    elementwise_warps,
    wide_loads,
    wide_stores,
)


@dataclass(frozen=True)
class RowsCase:
    """Rows of numbers."""

    name: str
    num_rows: int
    width: int
    dtype: torch.dtype


CASES = (
    RowsCase("r1_w64_f32", 1, 64, torch.float32),
    RowsCase("r37_w60_f16", 37, 60, torch.float16),
    RowsCase("r3_w2049_f32", 3, 2049, torch.float32),
    RowsCase("r2_w4864_f16", 2, 4864, torch.float16),
    RowsCase("r200_w1_f32", 200, 1, torch.float32),
)
"""Small batches that reach every branch; all run in the interpreter."""

BENCH_CASES = tuple(
    RowsCase(f"r{rows}_w{width}", rows, width, torch.bfloat16) for rows in (1, 64, 4096) for width in (8192, 14336)
)
"""Sizes of real models: decode, a large batch, and a prefill of 64 MB and more."""


def rows_aot_cases(arch: str, kernel: Any) -> list[AotCase]:
    """What is compiled ahead of time of a kernel over rows; all of its pointers have one dtype."""
    cases = []
    for dtype, width in ((torch.bfloat16, 14336), (torch.float16, 60), (torch.float32, 8192)):
        block_r, block_w = elementwise_tile(width)
        types = {name: "*" + TYPE_NAMES[dtype] for name in kernel.arg_names if name.endswith("_ptr")}
        constexprs = {"WIDTH": width, "BLOCK_R": block_r, "BLOCK_W": block_w}
        unaligned = tuple(n for n in kernel.arg_names if n.startswith("stride_")) if width % 16 else ()
        cases.append(
            aot_case(
                f"{TYPE_NAMES[dtype]}_w{width}",
                kernel,
                types,
                constexprs,
                num_warps=elementwise_warps(arch),
                unaligned=unaligned,
                expect=() if unaligned else wide_loads(arch) + wide_stores(arch),
            )
        )
    return cases


def aot_cases(arch: str) -> list[AotCase]:
    """What is compiled ahead of time for a target of `aot.ARCHS`."""
    return rows_aot_cases(arch, glu_kernel)
