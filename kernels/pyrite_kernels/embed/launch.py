"""Checks, grid and committed configuration of `embed`."""

from __future__ import annotations

from typing import Any

import torch
import triton

from pyrite_kernels.attention_launch import architecture, require
from pyrite_kernels.embed import kernel
from pyrite_kernels.small_launch import check_rows, elementwise_tile, elementwise_warps

_embed_kernel: Any = kernel.embed_kernel


def embed(ids: torch.Tensor, weight: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Gather rows: `out[t] = weight[ids[t]]`.

    An id outside 0 .. vocab_size - 1 reads nothing and gives a row of NaN.

    Args:
        ids: [rows] i32 | i64, contiguous.
        weight: [vocab_size, width] f32 | f16 | bf16, last dim contiguous.
        out: [rows, width] f32 | f16 | bf16, last dim contiguous; a new tensor of the dtype of weight where None.
    Returns:
        out.
    Raises:
        ValueError: a shape, dtype, device or layout breaks the above.
    """
    check_rows("weight", weight)
    require(ids.ndim == 1, "shape of ids", tuple(ids.shape), "[rows]")
    require(ids.dtype in (torch.int32, torch.int64), "dtype of ids", ids.dtype, "int32 or int64")
    require(ids.is_contiguous(), "strides of ids", ids.stride(), (1,))
    require(ids.device == weight.device, "device of ids", ids.device, weight.device)
    num_rows, width = ids.shape[0], weight.shape[1]
    out = torch.empty((num_rows, width), dtype=weight.dtype, device=weight.device) if out is None else out
    check_rows("out", out)
    require(tuple(out.shape) == (num_rows, width), "shape of out", tuple(out.shape), (num_rows, width))
    require(out.device == weight.device, "device of out", out.device, weight.device)
    if num_rows == 0 or width == 0:
        return out
    block_r, block_w = elementwise_tile(width)
    _embed_kernel[(triton.cdiv(num_rows, block_r), triton.cdiv(width, block_w))](
        ids,
        weight,
        out,
        weight.stride(0),
        out.stride(0),
        num_rows,
        weight.shape[0],
        WIDTH=width,
        BLOCK_R=block_r,
        BLOCK_W=block_w,
        num_warps=elementwise_warps(architecture(weight.device)),
        enable_fp_fusion=False,
    )
    return out
