"""The plain twins of `matmul` and `matmul_glu`, in f32 with one rounding at the end."""

from __future__ import annotations

import torch


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None
) -> torch.Tensor:
    """x weight^T + bias + residual in f32."""
    y = x.float() @ weight.float().T
    y = y if bias is None else y + bias.float()
    return y if residual is None else y + residual.float()


def matmul(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Do what `pyrite_kernels.matmul` does."""
    y = linear(x, weight, bias, residual)
    return y.to(x.dtype) if out is None else out.copy_(y)


def matmul_glu(
    x: torch.Tensor,
    weight_gate_up: torch.Tensor,
    *,
    activation: str = "silu",
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Do what `pyrite_kernels.matmul_glu` does."""
    if activation != "silu":
        raise ValueError(f"activation: got {activation!r}, expected 'silu'")
    gate, up = linear(x, weight_gate_up, bias, None).chunk(2, dim=1)
    y = gate / (1 + torch.exp(-gate)) * up
    return y.to(x.dtype) if out is None else out.copy_(y)
