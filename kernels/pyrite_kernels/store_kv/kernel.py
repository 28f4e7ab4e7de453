"""Triton body of `store_kv`: one program per BLOCK_T tokens and KV head."""

# Bodies are in Triton's language, whose ranges and constexpr arguments have no Python types.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def encode_e4m3(x):
    """f32 to e4m3 codes (uint8), nearest even, saturating at 448; a NaN becomes the NaN code.

    Adding 2**23 quanta rounds |x| to whole quanta; what the addition left in the low bits is their number.
    """
    bits = x.to(tl.int32, bitcast=True)
    a = tl.minimum(tl.abs(x), 448.0)
    exponent = tl.maximum((a.to(tl.int32, bitcast=True) >> 23), 121)  # biased; 121 is 2**-6, the least normal
    magic = ((exponent + 20) << 23).to(tl.float32, bitcast=True)
    quanta = (a + magic).to(tl.int32, bitcast=True) - ((exponent + 20) << 23)
    code = tl.where(x == x, (exponent - 121) * 8 + quanta, 0x7F)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def encode_int8(x):
    """f32 to int8, nearest even, saturating at +-127; a NaN becomes 0."""
    magic = 12582912.0  # 1.5 * 2**23: the sum's low bits are the rounded integer
    x = tl.minimum(tl.maximum(tl.where(x == x, x, 0.0), -127.0), 127.0)
    return ((x + magic).to(tl.int32, bitcast=True) - 0x4B400000).to(tl.int8)


@triton.jit
def store_rows(
    x_ptr,
    cache_ptr,
    scale_ptr,
    tokens,
    slots,
    head,
    stride_xt,
    stride_xh,
    stride_cb,
    stride_cs,
    stride_ch,
    mask_t,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KV: tl.constexpr,
):
    """Encode the rows of some tokens and write each to its slot."""
    offs_d = tl.arange(0, BLOCK_D)
    mask = (mask_t & (slots >= 0))[:, None] & (offs_d < HEAD_DIM)[None, :]
    x = tl.load(x_ptr + tokens[:, None] * stride_xt + head * stride_xh + offs_d[None, :], mask=mask, other=0.0)
    block = (slots // BLOCK_SIZE).to(tl.int64)
    offset = (slots % BLOCK_SIZE).to(tl.int64)
    at = cache_ptr + (block * stride_cb + offset * stride_cs + head * stride_ch)[:, None] + offs_d[None, :]
    if KV == "float":
        tl.store(at, x.to(cache_ptr.dtype.element_ty), mask=mask)
    else:
        y = tl.div_rn(x.to(tl.float32), tl.zeros_like(x).to(tl.float32) + tl.load(scale_ptr + head))
        if KV == "int8":
            tl.store(at, encode_int8(y), mask=mask)
        else:
            tl.store(at, encode_e4m3(y), mask=mask)


@triton.jit
def store_kv_kernel(
    k_ptr,
    v_ptr,
    k_cache_ptr,
    v_cache_ptr,
    slot_ptr,
    k_scale_ptr,
    v_scale_ptr,
    stride_kt,
    stride_kh,
    stride_vt,
    stride_vh,
    stride_kcb,
    stride_kcs,
    stride_kch,
    stride_vcb,
    stride_vcs,
    stride_vch,
    num_tokens,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    KV: tl.constexpr,
):
    """Store keys and values of BLOCK_T tokens, one KV head; slot -1 stores nothing."""
    tokens = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    head = tl.program_id(1).to(tl.int64)
    mask_t = tokens < num_tokens
    slots = tl.load(slot_ptr + tokens, mask=mask_t, other=-1)
    store_rows(
        k_ptr,
        k_cache_ptr,
        k_scale_ptr,
        tokens,
        slots,
        head,
        stride_kt,
        stride_kh,
        stride_kcb,
        stride_kcs,
        stride_kch,
        mask_t,
        HEAD_DIM,
        BLOCK_D,
        BLOCK_SIZE,
        KV,
    )
    store_rows(
        v_ptr,
        v_cache_ptr,
        v_scale_ptr,
        tokens,
        slots,
        head,
        stride_vt,
        stride_vh,
        stride_vcb,
        stride_vcs,
        stride_vch,
        mask_t,
        HEAD_DIM,
        BLOCK_D,
        BLOCK_SIZE,
        KV,
    )
