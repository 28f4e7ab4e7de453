"""Checks, grid and committed configurations of ragged prefill."""

from __future__ import annotations

from typing import Any

import torch
import triton

from pyrite_kernels.attention_launch import (
    SPLIT_KEYS,
    AttentionConfig,
    architecture,
    cache_kind,
    check_attention,
    check_int32,
    dot_precision,
    key_tile,
    padded_head_dim,
    raw_cache,
    require,
)
from pyrite_kernels.ragged_prefill import kernel

_ragged_prefill_kernel: Any = kernel.ragged_prefill_kernel


def config(arch: str, block_d: int, query_bytes: int) -> AttentionConfig:
    """The committed configuration; a row sums in the same order in decode.

    Before sm_100 every warp owns whole rows, in both ops. On sm_100 and gfx942 both have tiles of one size, so small
    that the sums of all keys and those of a split stay in registers.
    """
    if arch == "interpreter":
        return AttentionConfig(block_m=32, num_warps=4, num_stages=1)
    if arch == "sm_100":
        return AttentionConfig(block_m=64, num_warps=8, num_stages=1 if block_d > 128 or query_bytes == 4 else 3)
    if query_bytes == 4 or arch == "gfx942":
        return AttentionConfig(block_m=64, num_warps=4, num_stages=1)
    if block_d > 128:
        return AttentionConfig(128, 8, 1 if arch == "sm_89" else 2, None if arch == "sm_90" else 255)
    return AttentionConfig(block_m=128, num_warps=8, num_stages=2 if arch == "sm_89" else 3)


def ragged_prefill(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    softmax_scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend the new tokens of several sequences causally over their paged KV cache, which already holds them.

    The i-th of a sequence's n new tokens has position seq_len - n + i. A row has the same bits as `paged_decode` gives
    for it, whatever the chunking and the other sequences.

    Args:
        q: [num_tokens, num_heads, head_dim] f32 | f16 | bf16, last dim contiguous, head_dim up to 256.
        k_cache, v_cache: [num_blocks, block_size, num_kv_heads, head_dim], last dim contiguous; dtype of q, or
            float8_e4m3fn or int8, which then need both scales.
        block_table: [num_seqs, max_blocks] i32; entries past a sequence, or wholly behind its window, may be -1.
        cu_seqlens_q: [num_seqs + 1] i32, rising, from 0; rows of `q` past its last entry are not read or written.
        seq_lens: [num_seqs] i32, tokens in the cache, the new ones included.
        softmax_scale: multiplies q.k before softmax; positive.
        window: a query sees itself and the window - 1 keys before it.
        soft_cap: scores become soft_cap * tanh(score / soft_cap).
        sinks: [num_heads] f32 | f16 | bf16, one logit per head that joins the softmax's denominator only.
        k_scale, v_scale: [num_kv_heads] f32; a key is its code times the scale of its head.
        out: [num_tokens, num_heads, head_dim], dtype of q, last dim contiguous; made when None.
    Returns:
        `out`; accumulation in f32.
    Raises:
        ValueError: a shape, dtype, device, layout or number breaks the above.
    Source: FlashAttention-2, arXiv 2307.08691; PagedAttention, arXiv 2309.06180; sinks as arXiv 2309.17453.
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    check_attention(q, k_cache, v_cache, softmax_scale, window, soft_cap, sinks, k_scale, v_scale, out)
    num_seqs = block_table.shape[0]
    check_int32("block_table", block_table, (None, None), q.device)
    check_int32("cu_seqlens_q", cu_seqlens_q, (num_seqs + 1,), q.device)
    check_int32("seq_lens", seq_lens, (num_seqs,), q.device)
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = k_cache.shape[2]
    if num_tokens == 0 or num_seqs == 0 or num_heads == 0:
        return out
    arch = architecture(q.device)
    block_d = padded_head_dim(head_dim)
    tile = key_tile(arch, block_d, q.element_size())
    chosen = config(arch, block_d, q.element_size())
    group = num_heads // num_kv_heads
    require(num_tokens * group < 2**31, "num_tokens * num_heads / num_kv_heads", num_tokens * group, "less than 2**31")
    k_raw, v_raw = raw_cache(k_cache), raw_cache(v_cache)
    grid = (num_tokens * group // chosen.block_m + num_seqs, num_kv_heads)
    _ragged_prefill_kernel[grid](
        q,
        k_raw,
        v_raw,
        out,
        block_table,
        cu_seqlens_q,
        seq_lens,
        q if sinks is None else sinks,
        q if k_scale is None else k_scale,
        q if v_scale is None else v_scale,
        q.stride(0),
        q.stride(1),
        out.stride(0),
        out.stride(1),
        *k_raw.stride()[:3],
        *v_raw.stride()[:3],
        block_table.stride(0),
        num_seqs,
        float(softmax_scale),
        float(soft_cap or 1.0),
        window or 0,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        BLOCK_SIZE=k_cache.shape[1],
        BLOCK_M=chosen.block_m,
        KEY_TILE=tile,
        TILES_PER_SPLIT=triton.cdiv(SPLIT_KEYS, tile),
        KV=cache_kind(k_cache, arch),
        HAS_CAP=soft_cap is not None,
        HAS_WINDOW=window is not None,
        HAS_SINKS=sinks is not None,
        PRECISION=dot_precision(arch),
        **chosen.options(),
        enable_fp_fusion=False,
    )
    return out
