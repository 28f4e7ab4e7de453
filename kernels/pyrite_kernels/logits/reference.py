"""The plain twins of the ops on logits."""

from __future__ import annotations

import torch


def scale_softcap(
    x: torch.Tensor, *, multiplier: float, soft_cap: float | None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Do what `pyrite_kernels.scale_softcap` does."""
    y = x.float() * multiplier
    y = y if soft_cap is None else soft_cap * torch.tanh(y / soft_cap)
    return y.to(x.dtype) if out is None else out.copy_(y)


def select_candidates(
    logits: torch.Tensor, *, num_candidates: int, vocab_limit: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Do what `pyrite_kernels.select_candidates` does."""
    x = logits[:, :vocab_limit].float()
    order = torch.sort(x, dim=1, descending=True, stable=True).indices[:, :num_candidates]
    return order.to(torch.int32), x.gather(1, order), torch.logsumexp(x, dim=1)
