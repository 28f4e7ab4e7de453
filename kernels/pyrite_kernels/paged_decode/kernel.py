"""Triton bodies of paged decode: partial results of fixed key splits, then their merge in ascending order."""

# Bodies are in Triton's language, whose ranges and constexpr arguments have no Python types.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from pyrite_kernels.attention_tile import finish, fold_tiles, merge


@triton.jit
def decode_split_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    part_o_ptr,
    part_ml_ptr,
    block_table_ptr,
    seq_lens_ptr,
    k_scale_ptr,
    stride_qt,
    stride_qh,
    stride_kb,
    stride_ks,
    stride_kh,
    stride_vb,
    stride_vs,
    stride_vh,
    stride_table,
    num_kv_heads,
    max_splits,
    softmax_scale,
    soft_cap,
    window,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    KEY_TILE: tl.constexpr,
    TILES_PER_SPLIT: tl.constexpr,
    KV: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attend the query heads of one KV head of one sequence over every splits-th split, beginning with axis 1's id.

    part_o: [num_seqs * num_heads, max_splits, HEAD_DIM] f32; part_ml: [num_seqs * num_heads, max_splits, 2] f32. Entry
    s is the sequence's s-th visible split.
    """
    seq = tl.program_id(0) // num_kv_heads
    kv_head = tl.program_id(0) % num_kv_heads
    length = tl.load(seq_lens_ptr + seq)
    position = length - 1
    key_lo = 0
    if HAS_WINDOW:
        key_lo = tl.maximum(length - window, 0)
    first_split = key_lo // (KEY_TILE * TILES_PER_SPLIT)
    num_splits = tl.cdiv(length, KEY_TILE * TILES_PER_SPLIT) - first_split
    if tl.program_id(1) >= num_splits:
        return

    offs_d = tl.arange(0, BLOCK_D)
    rows = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = rows < GROUP
    heads = kv_head * GROUP + rows
    row_pos = tl.where(mask_m, position, -1)
    mask_q = mask_m[:, None] & (offs_d < HEAD_DIM)[None, :]
    q_row = q_ptr + seq.to(tl.int64) * stride_qt
    q = tl.load(q_row + heads[:, None].to(tl.int64) * stride_qh + offs_d[None, :], mask=mask_q, other=0.0)
    qk_scale = softmax_scale
    if KV != "float":
        qk_scale = softmax_scale * tl.load(k_scale_ptr + kv_head)
    k_base = k_ptr + kv_head.to(tl.int64) * stride_kh
    v_base = v_ptr + kv_head.to(tl.int64) * stride_vh
    table = block_table_ptr + seq.to(tl.int64) * stride_table
    part_row = (seq * num_kv_heads * GROUP + heads).to(tl.int64) * max_splits

    for s in tl.range(tl.program_id(1), num_splits, tl.num_programs(1), num_stages=1):
        split = first_split + s
        split_lo = split * TILES_PER_SPLIT
        tile_lo = tl.maximum(split_lo, key_lo // KEY_TILE)
        tile_hi = tl.minimum(split_lo + TILES_PER_SPLIT, tl.cdiv(length, KEY_TILE))
        full_lo = tl.minimum(tl.maximum(tl.cdiv(key_lo, KEY_TILE), tile_lo), tile_hi)
        full_hi = tl.maximum(tl.minimum(length // KEY_TILE, tile_hi), full_lo)
        m = tl.full([BLOCK_M], float("-inf"), tl.float32)
        den = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for part in tl.static_range(3):  # the window's edge, the full tiles, the tail
            if part != 0 or HAS_WINDOW:
                lo = tile_lo if part == 0 else (full_lo if part == 1 else full_hi)
                hi = full_lo if part == 0 else (full_hi if part == 1 else tile_hi)
                _, _, _, m, den, acc = fold_tiles(
                    m,
                    den,
                    acc,
                    m,
                    den,
                    acc,
                    q,
                    row_pos,
                    lo,
                    hi,
                    key_lo,
                    length,
                    k_base,
                    v_base,
                    table,
                    stride_kb,
                    stride_ks,
                    stride_vb,
                    stride_vs,
                    qk_scale,
                    soft_cap,
                    window,
                    HEAD_DIM,
                    BLOCK_D,
                    BLOCK_SIZE,
                    KEY_TILE,
                    TILES_PER_SPLIT,
                    KV,
                    HAS_CAP,
                    HAS_WINDOW,
                    part != 1,
                    False,
                    PRECISION,
                )
        at = part_row + s
        tl.store(part_ml_ptr + at * 2, m, mask=mask_m)
        tl.store(part_ml_ptr + at * 2 + 1, den, mask=mask_m)
        tl.store(part_o_ptr + at[:, None] * HEAD_DIM + offs_d[None, :], acc, mask=mask_q)


@triton.jit
def decode_merge_kernel(
    part_o_ptr,
    part_ml_ptr,
    out_ptr,
    seq_lens_ptr,
    sinks_ptr,
    v_scale_ptr,
    stride_ot,
    stride_oh,
    num_heads,
    max_splits,
    window,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLIT: tl.constexpr,
    KV: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    """Merge the splits of one head of one sequence, ascending, and write its output row."""
    seq = tl.program_id(0) // num_heads
    head = tl.program_id(0) % num_heads
    length = tl.load(seq_lens_ptr + seq)
    if length <= 0:
        return
    key_lo = 0
    if HAS_WINDOW:
        key_lo = tl.maximum(length - window, 0)
    num_splits = tl.cdiv(length, SPLIT) - key_lo // SPLIT
    offs_d = tl.arange(0, BLOCK_D)
    mask_d = offs_d < HEAD_DIM
    row = tl.program_id(0).to(tl.int64) * max_splits
    one = tl.arange(0, 1)
    m_all = tl.full([1], float("-inf"), tl.float32)
    den_all = tl.zeros([1], tl.float32)
    acc_all = tl.zeros([1, BLOCK_D], tl.float32)
    for s in tl.range(0, num_splits):
        at = row + s
        m = tl.load(part_ml_ptr + at * 2 + one)
        den = tl.load(part_ml_ptr + at * 2 + 1 + one)
        acc = tl.load(part_o_ptr + at * HEAD_DIM + offs_d, mask=mask_d, other=0.0)
        m_all, den_all, acc_all = merge(m_all, den_all, acc_all, m, den, acc[None, :])
    v_scale = 1.0
    if KV != "float":
        v_scale = tl.load(v_scale_ptr + head // GROUP)
    sink = m_all
    if HAS_SINKS:
        sink = tl.load(sinks_ptr + head + one).to(tl.float32)
    o = finish(m_all, den_all, acc_all, sink, v_scale, HAS_SINKS)
    out = out_ptr + seq.to(tl.int64) * stride_ot + head.to(tl.int64) * stride_oh + offs_d[None, :]
    tl.store(out, o.to(out_ptr.dtype.element_ty), mask=mask_d[None, :])
