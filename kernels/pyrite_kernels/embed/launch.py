"""Checks, grids and committed configuration of `embed`."""

from __future__ import annotations

from typing import Any

import torch
import triton

from pyrite_kernels.attention_launch import architecture, require
from pyrite_kernels.embed import kernel
from pyrite_kernels.quantized import QuantizedWeight
from pyrite_kernels.small_launch import check_rows, elementwise_tile, elementwise_warps

_embed_kernel: Any = kernel.embed_kernel
_embed_quantized_kernel: Any = kernel.embed_quantized_kernel


def embed(
    ids: torch.Tensor, weight: torch.Tensor | QuantizedWeight, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Gather rows: `out[t] = weight[ids[t]]`.

    An id outside 0 .. vocab_size - 1 reads nothing and gives a row of NaN.

    Args:
        ids: [rows] i32 | i64, contiguous.
        weight: [vocab_size, width] f32 | f16 | bf16, last dim contiguous; or integers, whose (code - zero) * scale is
            exact in f32 and rounded once, to the dtype of out.
        out: [rows, width] f32 | f16 | bf16, last dim contiguous; where None a new tensor of the dtype of weight, f32
            where that is integers.
    Returns:
        out.
    Raises:
        ValueError: a shape, dtype, device or layout breaks the above.
    """
    if isinstance(weight, QuantizedWeight):
        require(len(weight.shape) == 2, "shape of weight", weight.shape, "[vocab_size, width]")
        dtype = torch.float32
    else:
        check_rows("weight", weight)
        dtype = weight.dtype
    require(ids.ndim == 1, "shape of ids", tuple(ids.shape), "[rows]")
    require(ids.dtype in (torch.int32, torch.int64), "dtype of ids", ids.dtype, "int32 or int64")
    require(ids.is_contiguous(), "strides of ids", ids.stride(), (1,))
    require(ids.device == weight.device, "device of ids", ids.device, weight.device)
    num_rows, (vocab_size, width) = ids.shape[0], weight.shape
    out = torch.empty((num_rows, width), dtype=dtype, device=weight.device) if out is None else out
    check_rows("out", out)
    require(tuple(out.shape) == (num_rows, width), "shape of out", tuple(out.shape), (num_rows, width))
    require(out.device == weight.device, "device of out", out.device, weight.device)
    if num_rows == 0 or width == 0:
        return out
    block_r, block_w = elementwise_tile(width)
    grid = (triton.cdiv(num_rows, block_r), triton.cdiv(width, block_w))
    common: dict[str, Any] = {"WIDTH": width, "BLOCK_R": block_r, "BLOCK_W": block_w, "enable_fp_fusion": False}
    common["num_warps"] = elementwise_warps(architecture(weight.device))
    if isinstance(weight, QuantizedWeight):
        sizes = (weight.words.shape[1], weight.params.shape[1])
        _embed_quantized_kernel[grid](
            ids,
            weight.words,
            weight.params,
            out,
            out.stride(0),
            num_rows,
            vocab_size,
            *sizes,
            BITS=weight.bits,
            GROUP=weight.group_size,
            **common,
        )
    else:
        _embed_kernel[grid](ids, weight, out, weight.stride(0), out.stride(0), num_rows, vocab_size, **common)
    return out
