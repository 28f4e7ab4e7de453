"""The plain twin of `embed`."""

from __future__ import annotations

import torch

from pyrite_kernels.quantized import QuantizedWeight


def embed(
    ids: torch.Tensor, weight: torch.Tensor | QuantizedWeight, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Do what `pyrite_kernels.embed` does, for ids that exist."""
    y = (weight.dequantize() if isinstance(weight, QuantizedWeight) else weight)[ids.long()]
    return y if out is None else out.copy_(y)
