"""Shapes and dtypes of `gate`, for tests, benchmarks and ahead-of-time compilation."""

from __future__ import annotations

import torch

from pyrite_kernels.aot import AotCase
from pyrite_kernels.gate.kernel import gate_kernel
from pyrite_kernels.glu.cases import CASES as GLU_CASES
from pyrite_kernels.glu.cases import RowsCase, rows_aot_cases

CASES = GLU_CASES
"""Those of `glu`."""

BENCH_CASES = tuple(RowsCase(f"r{rows}_w4096", rows, 4096, torch.bfloat16) for rows in (1, 64, 8192))
"""Sizes of real models: decode, a large batch, and a prefill of 64 MB and more."""


def aot_cases(arch: str) -> list[AotCase]:
    """What is compiled ahead of time for a target of `aot.ARCHS`."""
    return rows_aot_cases(arch, gate_kernel)
