"""Triton body of ragged prefill: one program for BLOCK_M rows (tokens x the query heads of one KV head)."""

# Bodies are in Triton's language, whose ranges and constexpr arguments have no Python types.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from pyrite_kernels.attention_tile import finish, fold_tiles, merge


@triton.jit
def find_sequence(cu_seqlens_ptr, num_seqs, pid, GROUP: tl.constexpr, BLOCK_M: tl.constexpr):
    """The last sequence whose first program is <= pid; sequence i starts at cu[i] * GROUP // BLOCK_M + i."""
    lo = pid * 0
    hi = lo + num_seqs
    while hi - lo > 1:
        middle = (lo + hi) // 2
        first = tl.load(cu_seqlens_ptr + middle) * GROUP // BLOCK_M + middle
        lo = tl.where(first <= pid, middle, lo)
        hi = tl.where(first <= pid, hi, middle)
    return lo


@triton.jit
def ragged_prefill_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    block_table_ptr,
    cu_seqlens_ptr,
    seq_lens_ptr,
    sinks_ptr,
    k_scale_ptr,
    v_scale_ptr,
    stride_qt,
    stride_qh,
    stride_ot,
    stride_oh,
    stride_kb,
    stride_ks,
    stride_kh,
    stride_vb,
    stride_vs,
    stride_vh,
    stride_table,
    num_seqs,
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
    HAS_SINKS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attend one M tile; row r of a sequence is token r // GROUP, query head r % GROUP of the KV head."""
    pid = tl.num_programs(0) - 1 - tl.program_id(0)  # long rows first
    kv_head = tl.program_id(1)
    seq = find_sequence(cu_seqlens_ptr, num_seqs, pid, GROUP, BLOCK_M)
    token_0 = tl.load(cu_seqlens_ptr + seq)
    num_tokens = tl.load(cu_seqlens_ptr + seq + 1) - token_0
    row_0 = (pid - (token_0 * GROUP // BLOCK_M + seq)) * BLOCK_M
    if row_0 >= num_tokens * GROUP:
        return
    num_cached = tl.load(seq_lens_ptr + seq) - num_tokens

    offs_d = tl.arange(0, BLOCK_D)
    rows = row_0 + tl.arange(0, BLOCK_M)
    mask_m = rows < num_tokens * GROUP
    tokens = rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    row_pos = tl.where(mask_m, num_cached + tokens, -1)
    mask_q = mask_m[:, None] & (offs_d < HEAD_DIM)[None, :]
    at = (token_0 + tokens).to(tl.int64)
    q = tl.load(
        q_ptr + at[:, None] * stride_qt + heads[:, None].to(tl.int64) * stride_qh + offs_d[None, :],
        mask=mask_q,
        other=0.0,
    )  # [BLOCK_M, BLOCK_D]

    first_pos = num_cached + row_0 // GROUP
    last_pos = num_cached + tl.minimum((row_0 + BLOCK_M - 1) // GROUP, num_tokens - 1)
    key_lo = 0
    full_lo = 0  # the first tile of which every row sees all keys behind the diagonal
    if HAS_WINDOW:
        key_lo = tl.maximum(first_pos - window + 1, 0)
        full_lo = tl.cdiv(tl.maximum(last_pos - window + 1, 0), KEY_TILE)
    key_hi = last_pos + 1
    tile_lo = key_lo // KEY_TILE
    tile_hi = tl.cdiv(key_hi, KEY_TILE)
    full_hi = (first_pos + 1) // KEY_TILE
    full_lo = tl.minimum(tl.maximum(full_lo, tile_lo), tile_hi)
    full_hi = tl.maximum(full_hi, full_lo)

    qk_scale = softmax_scale
    v_scale = 1.0
    if KV != "float":
        qk_scale = softmax_scale * tl.load(k_scale_ptr + kv_head)
        v_scale = tl.load(v_scale_ptr + kv_head)
    k_base = k_ptr + kv_head.to(tl.int64) * stride_kh
    v_base = v_ptr + kv_head.to(tl.int64) * stride_vh
    table = block_table_ptr + seq.to(tl.int64) * stride_table
    m_all = tl.full([BLOCK_M], float("-inf"), tl.float32)
    den_all = tl.zeros([BLOCK_M], tl.float32)
    acc_all = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    m = m_all
    den = den_all
    acc = acc_all
    for part in tl.static_range(3):  # the window's edge, the full tiles, the diagonal
        if part != 0 or HAS_WINDOW:
            lo = tile_lo if part == 0 else (full_lo if part == 1 else full_hi)
            hi = full_lo if part == 0 else (full_hi if part == 1 else tile_hi)
            m_all, den_all, acc_all, m, den, acc = fold_tiles(
                m_all,
                den_all,
                acc_all,
                m,
                den,
                acc,
                q,
                row_pos,
                lo,
                hi,
                key_lo,
                key_hi,
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
                True,
                PRECISION,
            )
    m_all, den_all, acc_all = merge(m_all, den_all, acc_all, m, den, acc)
    sink = m_all
    if HAS_SINKS:
        sink = tl.load(sinks_ptr + heads, mask=mask_m, other=0.0).to(tl.float32)
    o = finish(m_all, den_all, acc_all, sink, v_scale, HAS_SINKS)
    out = out_ptr + at[:, None] * stride_ot + heads[:, None].to(tl.int64) * stride_oh + offs_d[None, :]
    tl.store(out, o.to(out_ptr.dtype.element_ty), mask=mask_q)
