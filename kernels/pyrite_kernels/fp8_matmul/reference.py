"""The plain twin of `fp8_matmul`: operands as f32 numbers, with their scales where these are of blocks, then f32."""

from __future__ import annotations

import torch

FP8_BLOCK = 128


def block_floats(weight_q: torch.Tensor, weight_scale: torch.Tensor) -> torch.Tensor:
    """The numbers f32 of a weight with a scale [ceil(out_features / 128), in_features / 128] for each 128 x 128."""
    scale = weight_scale.repeat_interleave(FP8_BLOCK, 0).repeat_interleave(FP8_BLOCK, 1)
    return weight_q.float() * scale[: weight_q.shape[0]]


def fp8_matmul(
    x_q: torch.Tensor,
    x_scale: torch.Tensor,
    weight_q: torch.Tensor,
    weight_scale: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Do what `pyrite_kernels.fp8_matmul` does."""
    if weight_scale.ndim == 2:
        x = x_q.float() * x_scale.repeat_interleave(FP8_BLOCK, 1)
        y = x @ block_floats(weight_q, weight_scale).T
    else:
        y = x_q.float() @ weight_q.float().T * x_scale[:, None] * weight_scale
    y = y if bias is None else y + bias.float()
    y = y if residual is None else y + residual.float()
    return y.to(out_dtype) if out is None else out.copy_(y)
