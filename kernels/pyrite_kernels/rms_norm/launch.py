"""Checks, grid and committed configuration of `rms_norm` and of its forms that quantize."""

from __future__ import annotations

from typing import Any

import torch
import triton

from pyrite_kernels.attention_launch import FP8, architecture, require
from pyrite_kernels.rms_norm import kernel
from pyrite_kernels.small_launch import (
    MAX_WIDTH,
    check_output,
    check_rows,
    check_vector,
    padded,
    persistent_programs,
    wave_factor,
)

_rms_norm_kernel: Any = kernel.rms_norm_kernel

FP8_GROUP = 128
"""Elements that share a scale in the blockwise form of `rms_norm_fp8`."""


def config(arch: str, width: int) -> tuple[int, int, int]:
    """(BLOCK_R, BLOCK_W, num_warps), by the width alone, so that the order of a row's sum is never the batch's.

    A tile has at least 2048 elements, of which a thread of NVIDIA's parts holds 16, or 32 in the widest.
    """
    block_w = max(padded(width), 16)
    block_r = max(1, 2048 // block_w)
    return block_r, block_w, min(16, block_r * block_w // 512) // wave_factor(arch)


def codes_kind(arch: str, dtype: torch.dtype) -> str:
    """How a part makes codes of this dtype; see `kernel.encode`.

    For sm_89 Triton 3.6 cuts a value to f16 before it rounds it, which moves ties: there codes are made by integers.
    """
    if dtype == torch.int8:
        return "int8"
    if dtype == FP8:
        return "fp8" if arch in ("sm_90", "sm_100") else "fp8_bits"
    return "none"


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    *,
    eps: float,
    residual: torch.Tensor | None = None,
    weight_offset: float = 0.0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Norm each row: `x / sqrt(mean(x^2) + eps) * (weight + weight_offset)`.

    With a residual, `residual += x` in place first, rounded to its dtype, and that sum is normed.

    Args:
        x: [rows, width] f32 | f16 | bf16, last dim contiguous, width at most 16384.
        weight: [width] f32 | f16 | bf16, or None for the factor 1.
        eps: added to the mean of squares, >= 0.
        residual: [rows, width] f32 | f16 | bf16, last dim contiguous, written in place.
        weight_offset: 1 for a weight stored around 0; unused without weight.
        out: [rows, width] f32 | f16 | bf16, may be x; a new tensor of the dtype of x where None.
    Returns:
        out. Arithmetic is in f32, in an order that depends on the width and the layout alone, never on other rows.
    Raises:
        ValueError: a shape, dtype, device or layout breaks the above.
    Source: RMSNorm, arXiv 1910.07467.
    """
    _check(x, weight, residual, eps)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    check_rows("out", out, x)
    _launch(x, weight, residual, out, None, x.shape[1], eps, weight_offset)
    return out


def rms_norm_int8(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    *,
    eps: float,
    residual: torch.Tensor | None = None,
    weight_offset: float = 0.0,
    out: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm each row as `rms_norm` does and quantize the f32 result to 8-bit integers with one scale per row.

    scale = max|y| / 127 and code = y * (127 / max|y|), rounded half to even; both are 0 where the maximum is below
    1e-30. A row with a NaN has the scale NaN.

    Args:
        x, weight, eps, residual, weight_offset: as in `rms_norm`.
        out: [rows, width] int8, last dim contiguous; new where None.
        scale: [rows] f32, contiguous; new where None.
    Returns:
        (out, scale); y is about `out * scale[:, None]`.
    Raises:
        ValueError: a shape, dtype, device or layout breaks the above.
    """
    _check(x, weight, residual, eps)
    out = torch.empty(x.shape, dtype=torch.int8, device=x.device) if out is None else out
    scale = torch.empty(x.shape[:1], dtype=torch.float32, device=x.device) if scale is None else scale
    check_output("out", out, tuple(x.shape), torch.int8, x.device)
    check_output("scale", scale, (x.shape[0],), torch.float32, x.device)
    _launch(x, weight, residual, out, scale, x.shape[1], eps, weight_offset)
    return out, scale


def rms_norm_fp8(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    *,
    eps: float,
    residual: torch.Tensor | None = None,
    weight_offset: float = 0.0,
    group_size: int | None = None,
    out: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm each row as `rms_norm` does and quantize the f32 result to e4m3, with a scale per row or per 128 elements.

    scale = max|y| / 448 and code = y * (448 / max|y|), rounded half to even; both are 0 where the maximum is below
    1e-30. A row with a NaN has the scale NaN.

    Args:
        x, weight, eps, residual, weight_offset: as in `rms_norm`.
        group_size: None for one scale per row, or 128, of which the width must be a multiple.
        out: [rows, width] float8_e4m3fn, last dim contiguous; new where None.
        scale: [rows] f32, or [rows, width / 128] f32 with group_size 128, last dim contiguous; new where None.
    Returns:
        (out, scale).
    Raises:
        ValueError: a shape, dtype, device or layout breaks the above.
    """
    _check(x, weight, residual, eps)
    require(group_size in (None, FP8_GROUP), "group_size", group_size, f"None or {FP8_GROUP}")
    rows, width = x.shape
    if group_size is not None:
        require(width % group_size == 0, "width", width, f"a multiple of group_size = {group_size}")
    shape = (rows,) if group_size is None else (rows, width // group_size)
    out = torch.empty(x.shape, dtype=FP8, device=x.device) if out is None else out
    scale = torch.empty(shape, dtype=torch.float32, device=x.device) if scale is None else scale
    check_output("out", out, (rows, width), FP8, x.device)
    check_output("scale", scale, shape, torch.float32, x.device)
    _launch(x, weight, residual, out, scale, width if group_size is None else group_size, eps, weight_offset)
    return out, scale


def _check(x: torch.Tensor, weight: torch.Tensor | None, residual: torch.Tensor | None, eps: float) -> None:
    check_rows("x", x)
    require(1 <= x.shape[1] <= MAX_WIDTH, "width", x.shape[1], f"1 to {MAX_WIDTH}")
    require(0.0 <= eps < float("inf"), "eps", eps, "a number that is not negative")
    if weight is not None:
        check_vector("weight", weight, x.shape[1], x.device)
    if residual is not None:
        check_rows("residual", residual, x)


def _launch(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor,
    scale: torch.Tensor | None,
    group: int,
    eps: float,
    weight_offset: float,
) -> None:
    """Run the kernel; `scale` None stores plain numbers."""
    num_rows, width = x.shape
    if num_rows == 0:
        return
    arch = architecture(x.device)
    block_r, block_w, num_warps = config(arch, width)
    programs = persistent_programs(x.device, num_warps, triton.cdiv(num_rows, block_r))
    _rms_norm_kernel[(programs,)](
        x,
        x if weight is None else weight,
        x if residual is None else residual,
        out.view(torch.uint8) if out.dtype == FP8 else out,
        x if scale is None else scale,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        out.stride(0),
        0 if scale is None else scale.stride(0),
        num_rows,
        eps,
        weight_offset,
        WIDTH=width,
        BLOCK_R=block_r,
        BLOCK_W=block_w,
        HAS_WEIGHT=weight is not None,
        HAS_RESIDUAL=residual is not None,
        CODES=codes_kind(arch, out.dtype),
        GROUP=group,
        num_warps=num_warps,
        enable_fp_fusion=False,
    )
