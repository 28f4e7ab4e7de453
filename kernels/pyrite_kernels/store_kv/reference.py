"""The plain twin of `store_kv`, and what 8-bit cache codes mean."""

from __future__ import annotations

import torch


def encode(x: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor | None) -> torch.Tensor:
    """Values [..., num_kv_heads, head_dim] as a cache of `dtype` holds them."""
    if scale is None:
        return x.to(dtype)
    y = x.float() / scale[:, None]
    if dtype == torch.int8:
        return y.nan_to_num(0.0, float("inf"), float("-inf")).round().clamp(-127, 127).to(torch.int8)
    return y.clamp(-448, 448).to(dtype)


def decode(codes: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """What a cache [..., num_kv_heads, head_dim] holds, in f32."""
    return codes.float() if scale is None else codes.float() * scale[:, None]


def store_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    *,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> None:
    """Do what `pyrite_kernels.store_kv` does, token by token."""
    block_size = k_cache.shape[1]
    for token, slot in enumerate(slot_mapping.tolist()):
        if slot >= 0:
            at = (slot // block_size, slot % block_size)
            k_cache[at] = encode(k[token], k_cache.dtype, k_scale)
            v_cache[at] = encode(v[token], v_cache.dtype, v_scale)
