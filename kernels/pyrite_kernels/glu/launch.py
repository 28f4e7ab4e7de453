"""Checks, grid and committed configuration of `glu`."""

from __future__ import annotations

from typing import Any

import torch
import triton

from pyrite_kernels.attention_launch import architecture
from pyrite_kernels.glu import kernel
from pyrite_kernels.small_launch import check_rows, elementwise_tile, elementwise_warps

_glu_kernel: Any = kernel.glu_kernel


def glu(gate: torch.Tensor, up: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Multiply `up` by the SiLU of `gate`: `gate / (1 + exp(-gate)) * up`, in f32.

    Args:
        gate, up: [rows, width] f32 | f16 | bf16, last dim contiguous; halves of one wider tensor will do.
        out: [rows, width] f32 | f16 | bf16, may be gate or up; a new tensor of the dtype of gate where None.
    Returns:
        out.
    Raises:
        ValueError: a shape, dtype, device or layout breaks the above.
    Source: SwiGLU, arXiv 2002.05202.
    """
    check_rows("gate", gate)
    check_rows("up", up, gate)
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device) if out is None else out
    check_rows("out", out, gate)
    num_rows, width = gate.shape
    if num_rows == 0 or width == 0:
        return out
    block_r, block_w = elementwise_tile(width)
    _glu_kernel[(triton.cdiv(num_rows, block_r), triton.cdiv(width, block_w))](
        gate,
        up,
        out,
        gate.stride(0),
        up.stride(0),
        out.stride(0),
        num_rows,
        WIDTH=width,
        BLOCK_R=block_r,
        BLOCK_W=block_w,
        num_warps=elementwise_warps(architecture(gate.device)),
        enable_fp_fusion=False,
    )
    return out
