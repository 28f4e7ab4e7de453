"""The plain twin of `qmatmul`: the weight as floats of x's dtype, then f32."""

from __future__ import annotations

import torch

from pyrite_kernels.matmul.reference import linear
from pyrite_kernels.quantized import QuantizedWeight


def qmatmul(
    x: torch.Tensor,
    qweight: QuantizedWeight,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Do what `pyrite_kernels.qmatmul` does."""
    y = linear(x, qweight.dequantize().to(x.dtype), bias, residual)
    return y.to(x.dtype) if out is None else out.copy_(y)
