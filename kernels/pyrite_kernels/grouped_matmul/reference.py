"""The plain twins of `grouped_matmul` and `sort_by_expert`; they read sizes on the host."""

from __future__ import annotations

import torch

from pyrite_kernels.matmul.reference import linear
from pyrite_kernels.quantized import QuantizedWeight


def grouped_matmul(
    x: torch.Tensor,
    weight: torch.Tensor | QuantizedWeight,
    group_sizes: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Do what `pyrite_kernels.grouped_matmul` does."""
    floats = weight if isinstance(weight, torch.Tensor) else weight.dequantize().to(x.dtype)
    out = torch.empty((x.shape[0], floats.shape[1]), dtype=x.dtype, device=x.device) if out is None else out
    first = 0
    for expert, size in enumerate(group_sizes.tolist()):
        out[first : first + size] = linear(x[first : first + size], floats[expert], None, None)
        first += size
    return out


def sort_by_expert(expert_ids: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Do what `pyrite_kernels.sort_by_expert` does."""
    ids = expert_ids.reshape(-1).long()
    ids = torch.where((ids >= 0) & (ids < num_experts), ids, num_experts)
    order = torch.sort(ids, stable=True).indices
    sizes = torch.bincount(ids, minlength=num_experts + 1)[:num_experts]
    return order.int(), torch.argsort(order).int(), sizes.int()
