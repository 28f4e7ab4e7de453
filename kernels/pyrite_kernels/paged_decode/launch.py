"""Checks, grid and committed configurations of paged decode."""

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
from pyrite_kernels.paged_decode import kernel

_decode_split_kernel: Any = kernel.decode_split_kernel
_decode_merge_kernel: Any = kernel.decode_merge_kernel

MAX_PROGRAMS = 4096
"""About as many programs are started; each then takes several splits of its head, which changes no result."""


def config(arch: str, block_d: int, query_bytes: int) -> AttentionConfig:
    """The committed configuration.

    On GPUs a program has as many rows as one group of warps multiplies with the instruction that prefill uses (64 rows
    in 4 warps; 128 in 8 before sm_90), though few hold a query: every warp owns whole rows, so that a row sums in the
    same order in both ops. On sm_100 and gfx942 rows and warps are those of prefill.
    """
    if arch == "interpreter":
        return AttentionConfig(block_m=32, num_warps=4, num_stages=1)
    if arch == "sm_100":
        return AttentionConfig(block_m=64, num_warps=8, num_stages=1 if block_d > 128 or query_bytes == 4 else 3)
    if query_bytes == 4 or arch == "gfx942":
        return AttentionConfig(block_m=64, num_warps=4, num_stages=1)
    if block_d > 128:
        return AttentionConfig(block_m=64, num_warps=4, num_stages=2 if arch == "sm_90" else 1)
    if arch in ("sm_80", "sm_89"):
        return AttentionConfig(block_m=128, num_warps=8, num_stages=3 if arch == "sm_80" else 2)
    return AttentionConfig(block_m=64, num_warps=4, num_stages=3)


def paged_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
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
    """Attend one query token per sequence over its paged KV cache, which already holds it.

    Keys are cut into splits of SPLIT_KEYS at absolute positions and the partial results merged ascending: a row does
    not depend on the batch, and has the same bits as `ragged_prefill` gives for it.

    Args:
        q: [num_seqs, num_heads, head_dim] f32 | f16 | bf16, last dim contiguous, head_dim up to 256.
        k_cache, v_cache: [num_blocks, block_size, num_kv_heads, head_dim], last dim contiguous; dtype of q, or
            float8_e4m3fn or int8, which then need both scales.
        block_table: [num_seqs, max_blocks] i32; entries past a sequence, or wholly behind its window, may be -1. Its
            width sizes the scratch memory.
        seq_lens: [num_seqs] i32, the current token included; a row of length 0 is not written.
        softmax_scale: multiplies q.k before softmax; positive.
        window: a query sees itself and the window - 1 keys before it.
        soft_cap: scores become soft_cap * tanh(score / soft_cap).
        sinks: [num_heads] f32 | f16 | bf16, one logit per head that joins the softmax's denominator only.
        k_scale, v_scale: [num_kv_heads] f32; a key is its code times the scale of its head.
        out: [num_seqs, num_heads, head_dim], dtype of q, last dim contiguous; made when None.
    Returns:
        `out`; accumulation in f32.
    Raises:
        ValueError: a shape, dtype, device, layout or number breaks the above.
    Source: PagedAttention, arXiv 2309.06180; split keys as Flash-Decoding; online softmax, arXiv 2307.08691.
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    check_attention(q, k_cache, v_cache, softmax_scale, window, soft_cap, sinks, k_scale, v_scale, out)
    num_seqs, num_heads, head_dim = q.shape
    num_kv_heads, block_size = k_cache.shape[2], k_cache.shape[1]
    check_int32("block_table", block_table, (num_seqs, None), q.device)
    check_int32("seq_lens", seq_lens, (num_seqs,), q.device)
    if num_seqs == 0 or num_heads == 0 or block_table.shape[1] == 0:
        return out
    arch = architecture(q.device)
    block_d = padded_head_dim(head_dim)
    tile = key_tile(arch, block_d, q.element_size())
    chosen = config(arch, block_d, q.element_size())
    group = num_heads // num_kv_heads
    max_splits = triton.cdiv(block_table.shape[1] * block_size, SPLIT_KEYS)
    if window is not None:
        max_splits = min(max_splits, triton.cdiv(window - 1, SPLIT_KEYS) + 1)
    pairs = num_seqs * num_kv_heads
    require(pairs * group * max_splits * head_dim < 2**62, "size of the scratch memory", pairs, "less")
    part_o = torch.empty((num_seqs * num_heads, max_splits, head_dim), dtype=torch.float32, device=q.device)
    part_ml = torch.empty((num_seqs * num_heads, max_splits, 2), dtype=torch.float32, device=q.device)
    k_raw, v_raw = raw_cache(k_cache), raw_cache(v_cache)
    kind = cache_kind(k_cache, arch)
    grid = (pairs, min(max_splits, max(1, MAX_PROGRAMS // pairs)), triton.cdiv(group, chosen.block_m))
    _decode_split_kernel[grid](
        q,
        k_raw,
        v_raw,
        part_o,
        part_ml,
        block_table,
        seq_lens,
        q if k_scale is None else k_scale,
        q.stride(0),
        q.stride(1),
        *k_raw.stride()[:3],
        *v_raw.stride()[:3],
        block_table.stride(0),
        num_kv_heads,
        max_splits,
        float(softmax_scale),
        float(soft_cap or 1.0),
        window or 0,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        BLOCK_SIZE=block_size,
        BLOCK_M=chosen.block_m,
        KEY_TILE=tile,
        TILES_PER_SPLIT=triton.cdiv(SPLIT_KEYS, tile),
        KV=kind,
        HAS_CAP=soft_cap is not None,
        HAS_WINDOW=window is not None,
        PRECISION=dot_precision(arch),
        **chosen.options(),
        enable_fp_fusion=False,
    )
    _decode_merge_kernel[(num_seqs * num_heads,)](
        part_o,
        part_ml,
        out,
        seq_lens,
        q if sinks is None else sinks,
        q if v_scale is None else v_scale,
        out.stride(0),
        out.stride(1),
        num_heads,
        max_splits,
        window or 0,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        SPLIT=SPLIT_KEYS,
        KV=kind,
        HAS_WINDOW=window is not None,
        HAS_SINKS=sinks is not None,
        num_warps=1 if block_d <= 128 else 2,
        num_stages=1,
        enable_fp_fusion=False,
    )
    return out
