"""Checks, grids and committed configurations of `quantize_rows_int8` and `quantize_rows_fp8`."""

from __future__ import annotations

from typing import Any

import torch
import triton

from pyrite_kernels.attention_launch import FP8, architecture, require
from pyrite_kernels.quantize_rows import kernel
from pyrite_kernels.rms_norm.launch import FP8_GROUP, codes_kind
from pyrite_kernels.small_launch import check_output, check_rows, elementwise_tile, padded, wave_factor

_rows_kernel: Any = kernel.rows_kernel
_groups_kernel: Any = kernel.groups_kernel

HELD_WIDTH = 8192
"""Wider rows are read twice."""


def rows_config(arch: str, width: int) -> tuple[int, int, int]:
    """(BLOCK_R, BLOCK_W, num_warps) with one scale per row: tiles of 2048 elements and more, 16 to a thread."""
    block_w = min(max(padded(width), 16), HELD_WIDTH)
    block_r = max(1, 2048 // block_w)
    return block_r, block_w, block_r * block_w // 512 // wave_factor(arch)


def groups_config(arch: str, width: int) -> tuple[int, int, int]:
    """(BLOCK_R, BLOCK_W, num_warps) with scales per 128 elements."""
    block_r, block_w = elementwise_tile(width)
    return block_r, block_w, 4 // wave_factor(arch)


def quantize_rows_int8(
    x: torch.Tensor, *, out: torch.Tensor | None = None, scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize rows to 8-bit integers with one scale per row, as `rms_norm_int8` does behind its norm.

    scale = max|x| / 127 and code = x * (127 / max|x|), rounded half to even; both are 0 where the maximum is below
    1e-30. A row with a NaN has the scale NaN, one with an infinity an infinite scale and codes 0: its products are NaN.

    Args:
        x: [rows, width] f32 | f16 | bf16, last dim contiguous.
        out: [rows, width] int8, last dim contiguous; new where None.
        scale: [rows] f32, contiguous; new where None.
    Returns:
        (out, scale); x is about `out * scale[:, None]`.
    Raises:
        ValueError: a shape, dtype, device or layout breaks the above.
    """
    return _quantize(x, torch.int8, None, out, scale)


def quantize_rows_fp8(
    x: torch.Tensor,
    *,
    group_size: int | None = None,
    out: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize rows to e4m3 with a scale per row or per 128 elements, as `rms_norm_fp8` does behind its norm.

    scale = max|x| / 448 and code = x * (448 / max|x|), rounded half to even; both are 0 where the maximum is below
    1e-30. Where the maximum is a NaN or an infinity so is the scale, and products are NaN.

    Args:
        x: [rows, width] f32 | f16 | bf16, last dim contiguous.
        group_size: None for one scale per row, or 128, of which the width must be a multiple.
        out: [rows, width] float8_e4m3fn, last dim contiguous; new where None.
        scale: [rows] f32, or [rows, width / 128] f32 with group_size 128, last dim contiguous; new where None.
    Returns:
        (out, scale).
    Raises:
        ValueError: a shape, dtype, device or layout breaks the above.
    """
    require(group_size in (None, FP8_GROUP), "group_size", group_size, f"None or {FP8_GROUP}")
    return _quantize(x, FP8, group_size, out, scale)


def _quantize(
    x: torch.Tensor, dtype: torch.dtype, group: int | None, out: torch.Tensor | None, scale: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    check_rows("x", x)
    rows, width = x.shape
    require(width >= 1, "width", width, "at least 1")
    if group is not None:
        require(width % group == 0, "width", width, f"a multiple of group_size = {group}")
    shape = (rows,) if group is None else (rows, width // group)
    out = torch.empty((rows, width), dtype=dtype, device=x.device) if out is None else out
    scale = torch.empty(shape, dtype=torch.float32, device=x.device) if scale is None else scale
    check_output("out", out, (rows, width), dtype, x.device)
    check_output("scale", scale, shape, torch.float32, x.device)
    if rows == 0:
        return out, scale
    arch = architecture(x.device)
    codes = out.view(torch.uint8) if dtype == FP8 else out
    common: dict[str, Any] = {"WIDTH": width, "CODES": codes_kind(arch, dtype), "enable_fp_fusion": False}
    if group is None:
        block_r, block_w, num_warps = rows_config(arch, width)
        _rows_kernel[(triton.cdiv(rows, block_r),)](
            x,
            codes,
            scale,
            x.stride(0),
            out.stride(0),
            rows,
            BLOCK_R=block_r,
            BLOCK_W=block_w,
            num_warps=num_warps,
            num_stages=1,
            **common,
        )
        return out, scale
    block_r, block_w, num_warps = groups_config(arch, width)
    _groups_kernel[(triton.cdiv(rows, block_r), triton.cdiv(width, block_w))](
        x,
        codes,
        scale,
        x.stride(0),
        out.stride(0),
        scale.stride(0),
        rows,
        BLOCK_R=block_r,
        BLOCK_W=block_w,
        GROUP=group,
        num_warps=num_warps,
        num_stages=1,
        **common,
    )
    return out, scale
