"""Checks, grid and committed configuration of `gate`."""

from __future__ import annotations

from typing import Any

import torch
import triton

from pyrite_kernels.attention_launch import architecture
from pyrite_kernels.gate import kernel
from pyrite_kernels.small_launch import check_rows, elementwise_tile, elementwise_warps

_gate_kernel: Any = kernel.gate_kernel


def gate(x: torch.Tensor, gate: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Multiply `x` by the sigmoid of `gate`: `x / (1 + exp(-gate))`, in f32.

    Args:
        x, gate: [rows, width] f32 | f16 | bf16, last dim contiguous.
        out: [rows, width] f32 | f16 | bf16, may be x; a new tensor of the dtype of x where None.
    Returns:
        out.
    Raises:
        ValueError: a shape, dtype, device or layout breaks the above.
    Source: the output gate of attention, arXiv 2505.06708.
    """
    check_rows("x", x)
    check_rows("gate", gate, x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    check_rows("out", out, x)
    num_rows, width = x.shape
    if num_rows == 0 or width == 0:
        return out
    block_r, block_w = elementwise_tile(width)
    _gate_kernel[(triton.cdiv(num_rows, block_r), triton.cdiv(width, block_w))](
        x,
        gate,
        out,
        x.stride(0),
        gate.stride(0),
        out.stride(0),
        num_rows,
        WIDTH=width,
        BLOCK_R=block_r,
        BLOCK_W=block_w,
        num_warps=elementwise_warps(architecture(x.device)),
        enable_fp_fusion=False,
    )
    return out
