"""The arithmetic that `ragged_prefill` and `paged_decode` share, so that a query row gets the same bits from both.

Keys are cut at fixed absolute positions: tiles of KEY_TILE keys, splits of TILES_PER_SPLIT tiles. Inside a split a row
keeps an online softmax (m, den, acc): the largest score so far, the sum of 2**(score - m), and that sum weighted by the
values. Splits are merged ascending into (m_all, den_all, acc_all). Scores are in units of log2, so that exp2 serves. A
tile of which a row sees no key changes none of its numbers, so other rows of the same program do not matter. Fused
multiply-adds are written out and the compiler's own fusion is off at launch: both kernels round in the same places.
Source: online softmax as FlashAttention-2, arXiv 2307.08691; paged keys as PagedAttention, arXiv 2309.06180.
"""

# Bodies are in Triton's language, whose ranges and constexpr arguments have no Python types.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def decode_cache(x, dtype: tl.constexpr, KV: tl.constexpr):
    """Cache elements as the dtype of the dot, exactly; KV is "float", "int8", "fp8" (native) or "fp8_bits"."""
    if KV == "fp8_bits":  # e4m3 by its bits: exponent and mantissa moved into place, then the biases' difference
        bits = x.to(tl.int32)
        magnitude = ((bits & 0x7F) << 20).to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2**120
        return tl.where((bits & 0x80) != 0, -magnitude, magnitude).to(dtype)
    elif KV == "fp8":
        return x.to(tl.float8e4nv, bitcast=True).to(dtype)
    else:
        return x.to(dtype)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a [M, K] . b [K, N] in f32; "rowwise" is for the interpreter, whose BLAS rounds a row by its place."""
    if PRECISION == "rowwise":
        return acc + tl.sum(a.to(tl.float32)[:, :, None] * b.to(tl.float32)[None, :, :], 1)
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def merge(m_all, den_all, acc_all, m, den, acc):
    """Fold the partial result of one more split (m, den, acc) into the running (m_all, den_all, acc_all)."""
    m_new = tl.maximum(m_all, m)
    m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
    a = tl.exp2(m_all - m_safe)
    b = tl.exp2(m - m_safe)
    den_all = tl.fma(den, b, den_all * a)
    acc_all = tl.fma(acc, tl.zeros_like(acc) + b[:, None], acc_all * a[:, None])
    return m_new, den_all, acc_all


@triton.jit
def finish(m_all, den_all, acc_all, sink, v_scale, HAS_SINKS: tl.constexpr):
    """Divide by the softmax's denominator; `sink` [rows] is a natural-log logit that joins only the denominator."""
    if HAS_SINKS:
        sink = sink * LOG2E
        m_new = tl.maximum(m_all, sink)
        a = tl.exp2(m_all - m_new)
        den_all = den_all * a + tl.exp2(sink - m_new)
        acc_all = acc_all * a[:, None]
    den_all = tl.where(den_all == 0.0, 1.0, den_all)
    return acc_all / den_all[:, None] * v_scale


@triton.jit
def load_tile(
    base,
    table_ptr,
    tile,
    key_lo,
    key_hi,
    stride_block,
    stride_slot,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """One tile of keys or values, [KEY_TILE, BLOCK_D]; MASKED reads only keys in [key_lo, key_hi), others are 0."""
    offs_n = tl.arange(0, KEY_TILE)
    offs_d = tl.arange(0, BLOCK_D)
    keys = tile * KEY_TILE + offs_n
    visible = (keys >= key_lo) & (keys < key_hi)
    if BLOCK_SIZE % KEY_TILE == 0:  # the tile lies in one page
        page = tl.load(table_ptr + tile * KEY_TILE // BLOCK_SIZE).to(tl.int64)
        slots = (tile * KEY_TILE % BLOCK_SIZE + offs_n).to(tl.int64)
        ptrs = base + page * stride_block + (slots[:, None] * stride_slot + offs_d[None, :])
    else:
        pages = tl.load(table_ptr + keys // BLOCK_SIZE, mask=visible, other=0).to(tl.int64)
        rows = pages * stride_block + (keys % BLOCK_SIZE).to(tl.int64) * stride_slot
        ptrs = base + (rows[:, None] + offs_d[None, :])
    if MASKED and HEAD_DIM != BLOCK_D:
        return tl.load(ptrs, mask=visible[:, None] & (offs_d < HEAD_DIM)[None, :], other=0)
    elif MASKED:
        return tl.load(ptrs, mask=visible[:, None], other=0)
    elif HEAD_DIM != BLOCK_D:
        return tl.load(ptrs, mask=(offs_d < HEAD_DIM)[None, :], other=0)
    else:
        return tl.load(ptrs)


@triton.jit
def fold_tiles(
    m_all,
    den_all,
    acc_all,
    m,
    den,
    acc,
    q,
    row_pos,
    tile_lo,
    tile_hi,
    key_lo,
    key_hi,
    k_base,
    v_base,
    table_ptr,
    stride_kb,
    stride_ks,
    stride_vb,
    stride_vs,
    qk_scale,
    soft_cap,
    window,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    TILES_PER_SPLIT: tl.constexpr,
    KV: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
    MERGE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fold key tiles [tile_lo, tile_hi) into the state of every row.

    row_pos: [rows] absolute position of each row's query, -1 for a row that stands for none. key_lo, key_hi: the keys
    that any row sees. MASKED: rows may see parts of a tile; without it every row sees every key of every tile here.
    MERGE: merge and begin anew at each split's first tile; without it all tiles belong to one split.
    """
    for tile in tl.range(tile_lo, tile_hi):
        if MERGE:  # noqa: SIM102  (one is decided when compiling)
            if tile % TILES_PER_SPLIT == 0:
                m_all, den_all, acc_all = merge(m_all, den_all, acc_all, m, den, acc)
                m = tl.zeros_like(m) + float("-inf")
                den = tl.zeros_like(den)
                acc = tl.zeros_like(acc)
        k = load_tile(
            k_base,
            table_ptr,
            tile,
            key_lo,
            key_hi,
            stride_kb,
            stride_ks,
            HEAD_DIM,
            BLOCK_D,
            BLOCK_SIZE,
            KEY_TILE,
            MASKED,
        )
        k = decode_cache(k, q.dtype, KV)
        s = dot(q, tl.trans(k), tl.zeros([q.shape[0], KEY_TILE], tl.float32), PRECISION)  # [rows, KEY_TILE]
        scale = qk_scale
        if HAS_CAP:  # tanh(x) = 1 - 2 / (1 + exp(2x)); from here on the scores are scaled
            s = soft_cap * (1.0 - 2.0 / (1.0 + tl.exp2(s * (2.0 * LOG2E * qk_scale / soft_cap))))
            scale = LOG2E
        else:
            scale = qk_scale * LOG2E
        if MASKED:
            keys = tile * KEY_TILE + tl.arange(0, KEY_TILE)
            seen = keys[None, :] <= row_pos[:, None]
            if HAS_WINDOW:
                seen = seen & (keys[None, :] > row_pos[:, None] - window)
            s = tl.where(seen, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1) * scale)
        m_safe = m_new
        if MASKED:
            m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(tl.fma(s, tl.zeros_like(s) + scale, tl.zeros_like(s) - m_safe[:, None]))
        alpha = tl.exp2(m - m_safe)
        den = tl.fma(den, alpha, tl.sum(p, 1))
        m = m_new
        acc = acc * alpha[:, None]
        v = load_tile(
            v_base,
            table_ptr,
            tile,
            key_lo,
            key_hi,
            stride_vb,
            stride_vs,
            HEAD_DIM,
            BLOCK_D,
            BLOCK_SIZE,
            KEY_TILE,
            MASKED,
        )
        v = decode_cache(v, q.dtype, KV)
        acc = dot(p.to(q.dtype), v, acc, PRECISION)
    return m_all, den_all, acc_all, m, den, acc
