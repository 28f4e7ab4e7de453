"""Checks, grid and committed configuration of `qk_norm_rope_store`."""

from __future__ import annotations

from typing import Any

import torch
import triton

from pyrite_kernels.attention_launch import (
    FP8,
    architecture,
    check_cache,
    check_int32,
    check_scales,
    padded_head_dim,
    raw_cache,
    require,
)
from pyrite_kernels.qk_norm_rope_store import kernel
from pyrite_kernels.small_launch import check_vector, padded, processors, wave_factor

_kernel: Any = kernel.qk_norm_rope_store_kernel


def head_sizes(arch: str, num_heads: int, num_kv_heads: int, head_dim: int, half: int) -> tuple[dict[str, int], int]:
    """(block sizes that the kernel is compiled for, warps): by the model alone, never by the number of tokens."""
    block_d = padded_head_dim(head_dim)
    block_h = min(padded(max(num_heads, num_kv_heads)), max(1, 1024 // block_d))
    blocks = {
        "BLOCK_D": block_d,
        "HALF": half,
        "BLOCK_HALF": max(padded(half), 8),
        "BLOCK_REST": max(padded(head_dim - 2 * half), 8),
        "BLOCK_H": block_h,
    }
    return blocks, max(1, block_h * block_d // 512 // wave_factor(arch))


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
    """Norm and rotate the heads of q and k, write q, and store k and v in their slots of the paged caches.

    Each step is left out where its argument is None. Norm of a head: `x / sqrt(mean(x^2) + eps) * (weight +
    weight_offset) * factor`. Rotation, with h = len(inv_freq) and angle = position * inv_freq[a] in f32, of elements
    a < h: `(x[a], x[a+h]) -> rope_scale * (x[a] cos - x[a+h] sin, x[a+h] cos + x[a] sin)`; elements from 2h on keep
    their values. The rotated k is rounded to the dtype of k before it is stored, as `store_kv` would get it.

    Args:
        q: [num_tokens, num_heads, head_dim] f32 | f16 | bf16, last dim contiguous.
        k, v: [num_tokens, num_kv_heads, head_dim], dtype of q, last dim contiguous; unchanged. q, k and v may be parts
            of one wider tensor.
        k_cache, v_cache: [num_blocks, block_size, num_kv_heads, head_dim], last dim contiguous; dtype of k, or
            float8_e4m3fn or int8, which then need both scales. Written in place.
        positions: [num_tokens] i32, 0 to 2**24.
        slot_mapping: [num_tokens] i32, block * block_size + offset; -1 stores nothing. Slots must differ.
        q_eps, k_eps: of the norm of q and of k; None leaves that norm out, with its weight and factor.
        q_weight, k_weight: [head_dim] f32 | f16 | bf16, or None for the factor 1.
        weight_offset: 1 for weights stored around 0; unused without a weight.
        q_factor, k_factor: multiply the normed heads.
        inv_freq: [h] f32, radians per position, 1 <= h <= head_dim / 2; None leaves the rotation out.
        rope_scale: multiplies cos and sin.
        k_scale, v_scale: [num_kv_heads] f32, as in `store_kv`.
        out: as q, for the new q; None writes it in place of q.
    Returns:
        out, or q. Arithmetic is in f32; a token's results depend on nothing but the token.
    Raises:
        ValueError: a shape, dtype, device, layout or number breaks the above.
    Source: RoFormer, arXiv 2104.09864 (half-split pairs as in GPT-NeoX); query-key norm, arXiv 2010.04245.
    """
    out = q if out is None else out
    _check(q, k, v, k_cache, v_cache, positions, slot_mapping, k_scale, v_scale, out)
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    for name, eps, weight in (("q", q_eps, q_weight), ("k", k_eps, k_weight)):
        require(eps is None or 0.0 <= eps < float("inf"), f"{name}_eps", eps, "None or a number that is not negative")
        if weight is not None:
            require(eps is not None, f"{name}_weight", "a tensor", f"None without {name}_eps")
            check_vector(f"{name}_weight", weight, head_dim, q.device)
    half = head_dim // 2
    if inv_freq is not None:
        half = inv_freq.shape[0] if inv_freq.ndim == 1 else 0
        require(1 <= half <= head_dim // 2, "shape of inv_freq", tuple(inv_freq.shape), f"[1 to {head_dim // 2}]")
        require(inv_freq.dtype == torch.float32, "dtype of inv_freq", inv_freq.dtype, torch.float32)
        check_vector("inv_freq", inv_freq, half, q.device)
    if num_tokens == 0:
        return out
    arch = architecture(q.device)
    blocks, num_warps = head_sizes(arch, num_heads, num_kv_heads, head_dim, half)
    tiles = triton.cdiv(num_heads, blocks["BLOCK_H"]) + triton.cdiv(num_kv_heads, blocks["BLOCK_H"])
    k_raw, v_raw = raw_cache(k_cache), raw_cache(v_cache)
    _kernel[(num_tokens, min(tiles, max(1, 4 * processors(q.device) // num_tokens)))](
        q,
        k,
        v,
        out,
        k_raw,
        v_raw,
        positions,
        slot_mapping,
        q if q_weight is None else q_weight,
        k if k_weight is None else k_weight,
        q if inv_freq is None else inv_freq,
        q if k_scale is None else k_scale,
        q if v_scale is None else v_scale,
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        *out.stride()[:2],
        *k_raw.stride()[:3],
        *v_raw.stride()[:3],
        0.0 if q_eps is None else float(q_eps),
        0.0 if k_eps is None else float(k_eps),
        float(weight_offset),
        float(q_factor),
        float(k_factor),
        float(rope_scale),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        **blocks,
        BLOCK_SIZE=k_cache.shape[1],
        Q_NORM=q_eps is not None,
        K_NORM=k_eps is not None,
        HAS_Q_WEIGHT=q_weight is not None,
        HAS_K_WEIGHT=k_weight is not None,
        ROPE=inv_freq is not None,
        KV={torch.int8: "int8", FP8: "fp8"}.get(k_cache.dtype, "float"),
        num_warps=num_warps,
        enable_fp_fusion=False,
    )
    return out


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """Check everything but norms and rotation.

    Raises:
        ValueError: a shape, dtype, device or layout breaks the contract.
    """
    require(q.ndim == 3 and q.shape[1] > 0, "shape of q", tuple(q.shape), "[num_tokens, num_heads, head_dim]")
    num_tokens, _, head_dim = q.shape
    require(head_dim >= 2, "head_dim", head_dim, "2 to 256")
    fits = k.ndim == 3 and k.shape[1] > 0 and (k.shape[0], k.shape[2]) == (num_tokens, head_dim)
    require(fits, "shape of k", tuple(k.shape), f"[{num_tokens}, num_kv_heads, {head_dim}]")
    require(v.shape == k.shape, "shape of v", tuple(v.shape), tuple(k.shape))
    require(out.shape == q.shape, "shape of out", tuple(out.shape), tuple(q.shape))
    for name, x in (("k", k), ("v", v), ("out", out)):
        require(x.dtype == q.dtype, f"dtype of {name}", x.dtype, q.dtype)
        require(x.device == q.device, f"device of {name}", x.device, q.device)
    for name, x in (("q", q), ("k", k), ("v", v), ("out", out)):
        require(x.stride(2) == 1, f"last stride of {name}", x.stride(2), 1)
    check_cache(k_cache, v_cache, head_dim, q, "q")
    require(k_cache.shape[2] == k.shape[1], "num_kv_heads of k_cache", k_cache.shape[2], k.shape[1])
    check_scales(k_cache, k_scale, v_scale, k.shape[1])
    check_int32("positions", positions, (num_tokens,), q.device)
    check_int32("slot_mapping", slot_mapping, (num_tokens,), q.device)
