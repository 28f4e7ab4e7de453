"""The plain twin of `qk_norm_rope_store`."""

from __future__ import annotations

import torch

from pyrite_kernels.store_kv.reference import store_kv


def qk_norm_rope_store(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    *,
    q_eps: float | None = None,
    k_eps: float | None = None,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    weight_offset: float = 0.0,
    q_factor: float = 1.0,
    k_factor: float = 1.0,
    inv_freq: torch.Tensor | None = None,
    rope_scale: float = 1.0,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Do what `pyrite_kernels.qk_norm_rope_store` does."""
    heads = []
    for x, eps, weight, factor in ((q, q_eps, q_weight, q_factor), (k, k_eps, k_weight, k_factor)):
        y = x.float()
        if eps is not None:
            y = y / torch.sqrt(torch.mean(y * y, dim=-1, keepdim=True) + eps)
            y = factor * (y if weight is None else y * (weight.float() + weight_offset))
        heads.append((y if inv_freq is None else rotate(y, positions, inv_freq, rope_scale)).to(x.dtype))
    store_kv(heads[1], v, k_cache, v_cache, slot_mapping, k_scale=k_scale, v_scale=v_scale)
    return (q if out is None else out).copy_(heads[0])


def rotate(x: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor, scale: float) -> torch.Tensor:
    """Rotate half-split pairs of heads [num_tokens, heads, head_dim] f32 by their positions."""
    half = len(inv_freq)
    angles = (positions.float()[:, None] * inv_freq)[:, None]  # [num_tokens, 1, half]
    cos, sin = torch.cos(angles) * scale, torch.sin(angles) * scale
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)
