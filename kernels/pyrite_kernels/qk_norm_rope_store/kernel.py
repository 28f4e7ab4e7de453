"""Triton body of `qk_norm_rope_store`: programs of a token share its heads, tile by tile."""

# Bodies are in Triton's language, whose ranges and constexpr arguments have no Python types.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from pyrite_kernels.store_kv.kernel import encode_e4m3, encode_int8


@triton.jit
def sin_cos(angle):
    """sin and cos of f32 angles below 2**30, within 2 units in the last place.

    A multiple of pi/2 is taken off in f64; the polynomials on [-pi/4, pi/4] are those of Cephes (sinf.c, S. Moshier).
    """
    wide = angle.to(tl.float64)
    magic = 6755399441055744.0  # 1.5 * 2**52: the sum's low bits are the rounded integer
    shifted = wide * 0.63661977236758134308 + magic
    quadrant = shifted.to(tl.int64, bitcast=True).to(tl.int32)
    r = (wide - (shifted - magic) * 1.57079632679489661923).to(tl.float32)
    z = r * r
    s = r + r * z * (-1.6666654611e-1 + z * (8.3321608736e-3 + z * -1.9515295891e-4))
    c = 1.0 - 0.5 * z + z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5))
    odd = (quadrant & 1) == 1
    sin, cos = tl.where(odd, c, s), tl.where(odd, s, c)
    return tl.where((quadrant & 2) == 2, -sin, sin), tl.where(((quadrant + 1) & 2) == 2, -cos, cos)


@triton.jit
def norm_factor(weight_ptr, offs, mask, weight_offset, factor, HAS_WEIGHT: tl.constexpr):
    """What a normed element is multiplied by."""
    if HAS_WEIGHT:
        return (tl.load(weight_ptr + offs, mask=mask, other=0.0).to(tl.float32) + weight_offset) * factor
    else:
        return tl.zeros_like(offs).to(tl.float32) + factor


@triton.jit
def norm_and_rotate(
    at,
    mask_h,
    factor_a,
    factor_b,
    factor_rest,
    sin,
    cos,
    eps,
    NORM: tl.constexpr,
    ROPE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    """Heads at pointers [BLOCK_H, 1], in f32: elements 0 .. HALF, HALF .. 2 HALF, and the rest, if there is any."""
    offs_a = tl.arange(0, BLOCK_HALF)[None, :]
    mask_a = mask_h & (offs_a < HALF)
    a = tl.load(at + offs_a, mask=mask_a, other=0.0).to(tl.float32)
    b = tl.load(at + HALF + offs_a, mask=mask_a, other=0.0).to(tl.float32)
    rest = a
    if 2 * HALF < HEAD_DIM:
        offs_rest = 2 * HALF + tl.arange(0, BLOCK_REST)[None, :]
        rest = tl.load(at + offs_rest, mask=mask_h & (offs_rest < HEAD_DIM), other=0.0).to(tl.float32)
    if NORM:
        total = tl.sum(a * a + b * b, axis=1)
        if 2 * HALF < HEAD_DIM:
            total += tl.sum(rest * rest, axis=1)
        mean = tl.div_rn(total, tl.zeros_like(total) + HEAD_DIM)
        inverse = tl.div_rn(tl.zeros_like(total) + 1.0, tl.sqrt_rn(mean + eps))[:, None]
        a = a * inverse * factor_a
        b = b * inverse * factor_b
        rest = rest * inverse * factor_rest if 2 * HALF < HEAD_DIM else a
    if ROPE:
        first = a * cos - b * sin
        b = b * cos + a * sin
        a = first
    return a, b, rest


@triton.jit
def store_cached(x, at, scale, mask, KV: tl.constexpr):
    """Store values in a cache of plain numbers ("float") or of codes in units of a scale ("int8", "fp8")."""
    if KV == "float":
        tl.store(at, x.to(at.dtype.element_ty), mask=mask)
    else:
        y = tl.div_rn(x.to(tl.float32), tl.zeros_like(x).to(tl.float32) + scale)
        if KV == "int8":
            tl.store(at, encode_int8(y), mask=mask)
        else:
            tl.store(at, encode_e4m3(y), mask=mask)


@triton.jit
def qk_norm_rope_store_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    k_cache_ptr,
    v_cache_ptr,
    position_ptr,
    slot_ptr,
    q_weight_ptr,
    k_weight_ptr,
    inv_freq_ptr,
    k_scale_ptr,
    v_scale_ptr,
    stride_qt,
    stride_qh,
    stride_kt,
    stride_kh,
    stride_vt,
    stride_vh,
    stride_ot,
    stride_oh,
    stride_kcb,
    stride_kcs,
    stride_kch,
    stride_vcb,
    stride_vcs,
    stride_vch,
    q_eps,
    k_eps,
    weight_offset,
    q_factor,
    k_factor,
    rope_scale,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
    HAS_Q_WEIGHT: tl.constexpr,
    HAS_K_WEIGHT: tl.constexpr,
    ROPE: tl.constexpr,
    KV: tl.constexpr,
):
    """Tiles of BLOCK_H heads of token `program_id(0)`: those of q, then those of k and v, dealt out to its programs."""
    token = tl.program_id(0).to(tl.int64)
    num_programs = tl.num_programs(1)
    Q_TILES: tl.constexpr = (NUM_HEADS + BLOCK_H - 1) // BLOCK_H
    KV_TILES: tl.constexpr = (NUM_KV_HEADS + BLOCK_H - 1) // BLOCK_H
    offs_h = tl.arange(0, BLOCK_H)[:, None]
    offs_a = tl.arange(0, BLOCK_HALF)[None, :]
    mask_a = offs_a < HALF
    offs_rest = 2 * HALF + tl.arange(0, BLOCK_REST)[None, :]
    mask_rest = offs_rest < HEAD_DIM
    if ROPE:
        inv_freq = tl.load(inv_freq_ptr + offs_a, mask=mask_a, other=0.0)
        sin, cos = sin_cos(tl.load(position_ptr + token).to(tl.float32) * inv_freq)
        sin = sin * rope_scale
        cos = cos * rope_scale
    else:
        sin = tl.zeros([1, BLOCK_HALF], tl.float32)
        cos = sin

    factor_a = norm_factor(q_weight_ptr, offs_a, mask_a, weight_offset, q_factor, HAS_Q_WEIGHT)
    factor_b = norm_factor(q_weight_ptr, offs_a + HALF, mask_a, weight_offset, q_factor, HAS_Q_WEIGHT)
    factor_rest = norm_factor(q_weight_ptr, offs_rest, mask_rest, weight_offset, q_factor, HAS_Q_WEIGHT)
    for tile in range(tl.program_id(1), Q_TILES, num_programs):
        heads = (tile * BLOCK_H + offs_h).to(tl.int64)
        mask_h = heads < NUM_HEADS
        at = q_ptr + token * stride_qt + heads * stride_qh
        a, b, rest = norm_and_rotate(
            at, mask_h, factor_a, factor_b, factor_rest, sin, cos, q_eps,
            Q_NORM, ROPE, HEAD_DIM, HALF, BLOCK_HALF, BLOCK_REST,
        )  # fmt: skip
        at = out_ptr + token * stride_ot + heads * stride_oh
        tl.store(at + offs_a, a.to(out_ptr.dtype.element_ty), mask=mask_h & mask_a)
        tl.store(at + HALF + offs_a, b.to(out_ptr.dtype.element_ty), mask=mask_h & mask_a)
        if 2 * HALF < HEAD_DIM:
            tl.store(at + offs_rest, rest.to(out_ptr.dtype.element_ty), mask=mask_h & mask_rest)

    slot = tl.load(slot_ptr + token)
    block = (slot // BLOCK_SIZE).to(tl.int64)
    offset = (slot % BLOCK_SIZE).to(tl.int64)
    factor_a = norm_factor(k_weight_ptr, offs_a, mask_a, weight_offset, k_factor, HAS_K_WEIGHT)
    factor_b = norm_factor(k_weight_ptr, offs_a + HALF, mask_a, weight_offset, k_factor, HAS_K_WEIGHT)
    factor_rest = norm_factor(k_weight_ptr, offs_rest, mask_rest, weight_offset, k_factor, HAS_K_WEIGHT)
    # The program after the one that got the last tile of q goes on: (program_id - Q_TILES) mod num_programs.
    for tile in range((tl.program_id(1) + Q_TILES * (num_programs - 1)) % num_programs, KV_TILES, num_programs):
        heads = (tile * BLOCK_H + offs_h).to(tl.int64)
        mask_h = heads < tl.where(slot >= 0, NUM_KV_HEADS, 0)
        at = k_ptr + token * stride_kt + heads * stride_kh
        a, b, rest = norm_and_rotate(
            at, mask_h, factor_a, factor_b, factor_rest, sin, cos, k_eps,
            K_NORM, ROPE, HEAD_DIM, HALF, BLOCK_HALF, BLOCK_REST,
        )  # fmt: skip
        k_scale = tl.zeros([BLOCK_H, 1], tl.float32) + 1.0
        v_scale = k_scale
        if KV != "float":
            k_scale = tl.load(k_scale_ptr + heads, mask=mask_h, other=1.0)
            v_scale = tl.load(v_scale_ptr + heads, mask=mask_h, other=1.0)
        at = k_cache_ptr + block * stride_kcb + offset * stride_kcs + heads * stride_kch
        store_cached(a.to(k_ptr.dtype.element_ty), at + offs_a, k_scale, mask_h & mask_a, KV)
        store_cached(b.to(k_ptr.dtype.element_ty), at + HALF + offs_a, k_scale, mask_h & mask_a, KV)
        if 2 * HALF < HEAD_DIM:
            store_cached(rest.to(k_ptr.dtype.element_ty), at + offs_rest, k_scale, mask_h & mask_rest, KV)
        offs_d = tl.arange(0, BLOCK_D)[None, :]
        mask_d = mask_h & (offs_d < HEAD_DIM)
        v = tl.load(v_ptr + token * stride_vt + heads * stride_vh + offs_d, mask=mask_d, other=0.0)
        at = v_cache_ptr + block * stride_vcb + offset * stride_vcs + heads * stride_vch
        store_cached(v, at + offs_d, v_scale, mask_d, KV)
