"""One way to compile a kernel ahead of time, without a GPU. Each op lists its own in `cases.py: aot_cases(arch)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ARCHS = ("sm_80", "sm_89", "sm_90", "sm_100", "gfx942")
"""Targets that kernels are compiled for."""


@dataclass(frozen=True)
class AotCase:
    """A kernel with everything that the compiler must know.

    Args:
        name: unique within its op, such as "bf16_d128_window".
        kernel: the `@triton.jit` function.
        signature: parameter name -> type in Triton's spelling ("*bf16", "i32", "fp32", "constexpr"), all parameters.
        constexprs: values of the "constexpr" parameters.
        num_warps, num_stages: as `launch.py` chooses them for this target.
        aligned: parameters that are divisible by 16 (pointers and strides); without it loads are not vectorised.
        expect: regular expressions that the PTX must match (wgmma on sm_90, mma on sm_80, 16-byte loads, ...).
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int
    aligned: tuple[str, ...] = ()
    expect: tuple[str, ...] = field(default=())
