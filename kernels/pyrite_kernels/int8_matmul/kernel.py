"""Triton bodies of `int8_matmul`: integer products and sums, exact in int32, then two scales and the epilogue in f32.

Exact sums have no order: K may be cut anywhere, and a row's bits are the same in every form. The weight is the left
operand as in `matmul`, so that few tokens fill an instruction.
"""

# Bodies are in Triton's language, whose ranges and constexpr arguments have no Python types.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from pyrite_kernels.matmul.kernel import load_columns, tile_place, write_part, write_tile


@triton.jit
def sum_span(
    w_rows,
    x_rows,
    k_lo,
    k_hi,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """Sum K in [k_lo, k_hi): weight . x^T, [BLOCK_N, BLOCK_M] i32."""
    offs_k = tl.arange(0, BLOCK_K)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.int32)
    for k in tl.range(k_lo, k_hi, BLOCK_K):
        ks = (k + offs_k)[None, :]
        w = load_columns(w_rows, ks, k_hi, EVEN_K)
        x = load_columns(x_rows, ks, k_hi, EVEN_K)
        acc = tl.dot(w, tl.trans(x), acc, out_dtype=tl.int32)
    return acc


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
    stride_w,
    stride_r,
    stride_o,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """One output tile over all of K."""
    pid_m, pid_n = tile_place(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_M)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    # Rows past the end read the last one; what becomes of them is not stored.
    w_rows = w_ptr + tl.minimum(offs_n, N - 1).to(tl.int64) * stride_w
    x_rows = x_ptr + tl.minimum(offs_m, M - 1).to(tl.int64) * stride_x
    acc = sum_span(w_rows, x_rows, 0, K, BLOCK_N, BLOCK_M, BLOCK_K, EVEN_K).to(tl.float32)
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
    w_ptr,
    part_ptr,
    M,
    N,
    K,
    stride_x,
    stride_w,
    span,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """One span (axis 1) of one tile (axis 0 over N, axis 2 over M) into part [spans, M, N] i32."""
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    k_lo = tl.program_id(1) * span
    k_hi = tl.minimum(k_lo + span, K)
    w_rows = w_ptr + tl.minimum(offs_n, N - 1).to(tl.int64) * stride_w
    x_rows = x_ptr + tl.minimum(offs_m, M - 1).to(tl.int64) * stride_x
    acc = sum_span(w_rows, x_rows, k_lo, k_hi, BLOCK_N, BLOCK_M, BLOCK_K, EVEN_K)
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
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """Add the spans of part [num_spans, M, N] i32, scale, finish and write BLOCK outputs of one row."""
    row = tl.program_id(0).to(tl.int64)
    offs_n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask_n = offs_n < N
    base = part_ptr + row * N + offs_n
    total = tl.zeros([BLOCK], tl.int32)
    for s in tl.range(0, num_spans):
        total += tl.load(base + s * M * N, mask=mask_n, other=0)
    acc = total.to(tl.float32) * tl.load(x_scale_ptr + row)
    acc = acc * tl.load(w_scale_ptr + offs_n, mask=mask_n, other=0.0)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        acc += tl.load(residual_ptr + row * stride_r + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * stride_o + offs_n, acc.to(out_ptr.dtype.element_ty), mask=mask_n)
