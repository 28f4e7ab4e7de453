"""The plain twin of `int8_matmul`: exact sums in f64, then the same f32 operations in the same order."""

from __future__ import annotations

import torch


def int8_matmul(
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
    """Do what `pyrite_kernels.int8_matmul` does; its f32 results have the same bits."""
    y = (x_q.double() @ weight_q.double().T).float()
    y = y * x_scale[:, None] * weight_scale
    y = y if bias is None else y + bias.float()
    y = y if residual is None else y + residual.float()
    return y.to(out_dtype) if out is None else out.copy_(y)
