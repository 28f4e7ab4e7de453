"""Checks, grid and committed configuration of `store_kv`."""

from __future__ import annotations

from typing import Any

import torch
import triton

from pyrite_kernels.attention_launch import (
    FP8,
    check_cache,
    check_int32,
    check_scales,
    padded_head_dim,
    raw_cache,
    require,
)
from pyrite_kernels.store_kv import kernel

_store_kv_kernel: Any = kernel.store_kv_kernel


def tokens_per_program(block_d: int) -> int:
    """Tokens of one program: about 2048 elements, 16 for each thread."""
    return max(4, 2048 // block_d)


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
    """Write the keys and values of a step's tokens into their slots of the paged caches, in place.

    Args:
        k, v: [num_tokens, num_kv_heads, head_dim] f32 | f16 | bf16, one dtype, last dim contiguous.
        k_cache, v_cache: [num_blocks, block_size, num_kv_heads, head_dim], last dim contiguous; dtype of k, or
            float8_e4m3fn or int8, which then need both scales.
        slot_mapping: [num_tokens] i32, block * block_size + offset; -1 stores nothing. Slots must differ.
        k_scale, v_scale: [num_kv_heads] f32, positive; the code of x in head h is x / scale[h], rounded half to even
            and saturated at +-448 (e4m3) or +-127 (int8).
    Raises:
        ValueError: a shape, dtype, device or layout breaks the above.
    Source: slots as in PagedAttention, arXiv 2309.06180.
    """
    require(k.ndim == 3, "shape of k", tuple(k.shape), "[num_tokens, num_kv_heads, head_dim]")
    require(v.shape == k.shape, "shape of v", tuple(v.shape), tuple(k.shape))
    require(v.dtype == k.dtype, "dtype of v", v.dtype, k.dtype)
    num_tokens, num_kv_heads, head_dim = k.shape
    check_cache(k_cache, v_cache, head_dim, k, "k")
    require(k_cache.shape[2] == num_kv_heads, "num_kv_heads of k_cache", k_cache.shape[2], num_kv_heads)
    for name, x in (("k", k), ("v", v)):
        require(head_dim == 1 or x.stride(2) == 1, f"last stride of {name}", x.stride(2), 1)
        require(x.device == k.device, f"device of {name}", x.device, k.device)
    check_scales(k_cache, k_scale, v_scale, num_kv_heads)
    check_int32("slot_mapping", slot_mapping, (num_tokens,), k.device)
    if num_tokens == 0 or num_kv_heads == 0:
        return
    k_raw, v_raw = raw_cache(k_cache), raw_cache(v_cache)
    block_d = padded_head_dim(head_dim)
    block_t = tokens_per_program(block_d)
    kind = {torch.int8: "int8", FP8: "fp8"}.get(k_cache.dtype, "float")
    _store_kv_kernel[(triton.cdiv(num_tokens, block_t), num_kv_heads)](
        k,
        v,
        k_raw,
        v_raw,
        slot_mapping,
        k if k_scale is None else k_scale,
        k if v_scale is None else v_scale,
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        *k_raw.stride()[:3],
        *v_raw.stride()[:3],
        num_tokens,
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        BLOCK_SIZE=k_cache.shape[1],
        BLOCK_T=block_t,
        KV=kind,
        num_warps=4,
        enable_fp_fusion=False,
    )
