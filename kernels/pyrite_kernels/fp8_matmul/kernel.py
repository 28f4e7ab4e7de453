"""Triton bodies of `fp8_matmul`: e4m3 products in blocks of 128 inputs, promoted to f32 block by block.

Hopper's and Ada's tensor cores keep about 14 bits of a running 8-bit float sum; so a block starts from 0 and is added
to the f32 accumulator by a multiply-add of its own, with the block's scale or with 1. K is cut into the spans of
`matmul` and blocks and spans are added ascending, with few rows as with many. The weight is the left operand.
Source: promotion per 128 inputs and the scales of blocks as DeepSeek-V3, arXiv 2412.19437, section 3.3; how few bits
the accumulator has, SageAttention2, arXiv 2411.10958.
"""

# Bodies are in Triton's language, whose ranges and constexpr arguments have no Python types.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from pyrite_kernels.attention_tile import dot
from pyrite_kernels.matmul.kernel import load_columns, tile_place, write_part, write_tile

BLOCK_K = tl.constexpr(128)  # inputs of a block, everywhere


@triton.jit
def decode(codes, CODES: tl.constexpr):
    """Bytes as operands: "fp8", the part's own e4m3; "fp8_bits", f16 of the same values, by their bits (no NaN)."""
    if CODES == "fp8":
        return codes.to(tl.float8e4nv, bitcast=True)
    else:  # exponent and mantissa moved into place, then the difference of the biases
        wide = codes.to(tl.uint16)
        bits = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
        return (bits.to(tl.float16, bitcast=True) * 256.0).to(tl.float16)


@triton.jit
def sum_span(
    w_rows,
    x_rows,
    w_scale_at,
    x_scale_at,
    x_scale_rows,
    k_lo,
    k_hi,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCKWISE: tl.constexpr,
    CODES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sum K in [k_lo, k_hi): weight . x^T, [BLOCK_N, BLOCK_M] f32, times the scales of blocks if BLOCKWISE.

    w_scale_at: pointer to the first scale of the 128 weight rows that the tile lies in; x_scale_at: to the first scale
    of its first token; x_scale_rows: [BLOCK_M] i32 from there to the first scale of each token, in half the registers
    of a pointer.
    """
    offs_k = tl.arange(0, BLOCK_K)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for k in tl.range(k_lo, k_hi, BLOCK_K):
        ks = (k + offs_k)[None, :]
        w = decode(load_columns(w_rows, ks, k_hi, EVEN_K), CODES)
        x = decode(load_columns(x_rows, ks, k_hi, EVEN_K), CODES)
        part = dot(w, tl.trans(x), tl.zeros([BLOCK_N, BLOCK_M], tl.float32), PRECISION)
        if BLOCKWISE:
            x_scale = tl.load(x_scale_at + k // BLOCK_K + x_scale_rows)
            scale = (x_scale * tl.load(w_scale_at + k // BLOCK_K))[None, :]
        else:
            scale = tl.full([1, BLOCK_M], 1.0, tl.float32)
        acc = tl.fma(part, tl.broadcast_to(scale, [BLOCK_N, BLOCK_M]), acc)
    return acc


@triton.jit
def locate(
    x_ptr,
    x_scale_ptr,
    w_ptr,
    w_scale_ptr,
    pid_n,
    pid_m,
    M,
    N,
    stride_x,
    stride_xs,
    stride_w,
    stride_ws,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """(offs_n, offs_m, w_rows, x_rows, w_scale_at, x_scale_at, x_scale_rows) of a tile, for `sum_span`.

    Rows past the end read the last one; what becomes of them is not stored.
    """
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = tl.minimum(offs_m, M - 1).to(tl.int64)
    w_rows = w_ptr + tl.minimum(offs_n, N - 1).to(tl.int64) * stride_w
    w_scale_at = w_scale_ptr + (pid_n * BLOCK_N // 128).to(tl.int64) * stride_ws
    first = pid_m * BLOCK_M
    x_scale_at = x_scale_ptr + first.to(tl.int64) * stride_xs
    x_scale_rows = (tl.minimum(offs_m, M - 1) - first) * stride_xs
    return offs_n, offs_m, w_rows, x_ptr + rows * stride_x, w_scale_at, x_scale_at, x_scale_rows


@triton.jit(do_not_specialize=["M"])
def tiled_kernel(
    x_ptr,
    x_scale_ptr,
    w_ptr,
    w_scale_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    M,
    N,
    K,
    stride_x,
    stride_xs,
    stride_w,
    stride_ws,
    stride_r,
    stride_o,
    span,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    GROUP_M: tl.constexpr,
    ONE_SPAN: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCKWISE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    CODES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One output tile, all spans."""
    pid_m, pid_n = tile_place(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_M)
    offs_n, offs_m, w_rows, x_rows, w_scale_at, x_scale_at, x_scale_rows = locate(
        x_ptr,
        x_scale_ptr,
        w_ptr,
        w_scale_ptr,
        pid_n,
        pid_m,
        M,
        N,
        stride_x,
        stride_xs,
        stride_w,
        stride_ws,
        BLOCK_N,
        BLOCK_M,
    )
    if ONE_SPAN:
        acc = sum_span(
            w_rows,
            x_rows,
            w_scale_at,
            x_scale_at,
            x_scale_rows,
            0,
            K,
            BLOCK_N,
            BLOCK_M,
            EVEN_K,
            BLOCKWISE,
            CODES,
            PRECISION,
        )
    else:
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for k in tl.range(0, K, span, num_stages=1):
            k_hi = tl.minimum(k + span, K)
            acc += sum_span(
                w_rows,
                x_rows,
                w_scale_at,
                x_scale_at,
                x_scale_rows,
                k,
                k_hi,
                BLOCK_N,
                BLOCK_M,
                EVEN_K,
                BLOCKWISE,
                CODES,
                PRECISION,
            )
    if not BLOCKWISE:
        acc = acc * tl.load(x_scale_ptr + offs_m, mask=offs_m < M, other=0.0)[None, :]
        acc = acc * tl.load(w_scale_ptr + offs_n, mask=offs_n < N, other=0.0)[:, None]
    write_tile(
        acc,
        acc,
        bias_ptr,
        residual_ptr,
        out_ptr,
        offs_n,
        offs_m,
        N,
        M,
        stride_r,
        stride_o,
        HAS_BIAS,
        HAS_RESIDUAL,
        False,
    )


@triton.jit(do_not_specialize=["M"])
def split_kernel(
    x_ptr,
    x_scale_ptr,
    w_ptr,
    w_scale_ptr,
    part_ptr,
    M,
    N,
    K,
    stride_x,
    stride_xs,
    stride_w,
    stride_ws,
    span,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCKWISE: tl.constexpr,
    CODES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One span (axis 1) of one tile (axis 0 over N, axis 2 over M) into part [spans, M, N] f32."""
    offs_n, offs_m, w_rows, x_rows, w_scale_at, x_scale_at, x_scale_rows = locate(
        x_ptr,
        x_scale_ptr,
        w_ptr,
        w_scale_ptr,
        tl.program_id(0),
        tl.program_id(2),
        M,
        N,
        stride_x,
        stride_xs,
        stride_w,
        stride_ws,
        BLOCK_N,
        BLOCK_M,
    )
    k_lo = tl.program_id(1) * span
    k_hi = tl.minimum(k_lo + span, K)
    acc = sum_span(
        w_rows,
        x_rows,
        w_scale_at,
        x_scale_at,
        x_scale_rows,
        k_lo,
        k_hi,
        BLOCK_N,
        BLOCK_M,
        EVEN_K,
        BLOCKWISE,
        CODES,
        PRECISION,
    )
    write_part(acc, part_ptr, tl.program_id(1), offs_n, offs_m, N, M)


@triton.jit(do_not_specialize=["M"])
def merge_kernel(
    part_ptr,
    x_scale_ptr,
    w_scale_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    M,
    N,
    stride_r,
    stride_o,
    num_spans,
    BLOCK: tl.constexpr,
    BLOCKWISE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """Add the spans of part [num_spans, M, N] ascending, scale unless BLOCKWISE, finish BLOCK outputs of one row."""
    row = tl.program_id(0).to(tl.int64)
    offs_n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask_n = offs_n < N
    base = part_ptr + row * N + offs_n
    acc = tl.zeros([BLOCK], tl.float32)
    for s in tl.range(0, num_spans):
        acc += tl.load(base + s * M * N, mask=mask_n, other=0.0)
    if not BLOCKWISE:
        acc = acc * tl.load(x_scale_ptr + row)
        acc = acc * tl.load(w_scale_ptr + offs_n, mask=mask_n, other=0.0)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        acc += tl.load(residual_ptr + row * stride_r + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * stride_o + offs_n, acc.to(out_ptr.dtype.element_ty), mask=mask_n)
