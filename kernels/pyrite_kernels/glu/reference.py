"""The plain twin of `glu`."""

from __future__ import annotations

import torch


def glu(gate: torch.Tensor, up: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Do what `pyrite_kernels.glu` does."""
    z = gate.float()
    y = z / (1 + torch.exp(-z)) * up.float()
    return y.to(gate.dtype) if out is None else out.copy_(y)
