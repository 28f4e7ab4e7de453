"""Triton bodies of `matmul`: x weight^T with equal bits for a row whatever the number of rows.

K is cut into spans fixed by the weight's shape. Inside a span one accumulator takes K in ascending order; spans are
added ascending, in f32. `split_kernel` gives each span to a program of its own and `merge_kernel` adds them;
`tiled_kernel` walks all spans of its tile. The weight is the left operand everywhere, so that one and the same matrix
instruction serves both, and tokens are its columns: a result never meets another token's.
"""

# Bodies are in Triton's language, whose ranges and constexpr arguments have no Python types.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from pyrite_kernels.attention_tile import dot


@triton.jit
def tile_place(pid, num_m, num_n, GROUP_M: tl.constexpr):
    """(pid_m, pid_n) of a program: GROUP_M tiles of rows share a weight tile in turn, so that both stay in L2."""
    first = pid // (GROUP_M * num_n) * GROUP_M
    group = tl.minimum(num_m - first, GROUP_M)
    within = pid % (GROUP_M * num_n)
    return first + within % group, within // group


@triton.jit
def load_columns(rows, ks, k_hi, EVEN_K: tl.constexpr):
    """Columns ks [1, BLOCK_K] of rows [tile] of pointers; those from k_hi on are 0."""
    if EVEN_K:
        return tl.load(rows[:, None] + ks)
    else:
        return tl.load(rows[:, None] + ks, mask=ks < k_hi, other=0.0)


@triton.jit
def sum_span(
    w_rows,
    up_rows,
    x_rows,
    k_lo,
    k_hi,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    GLU: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sum K in [k_lo, k_hi): weight . x^T, [BLOCK_N, BLOCK_M] f32, of the rows w_rows, and of up_rows if GLU."""
    offs_k = tl.arange(0, BLOCK_K)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    up = acc
    for k in tl.range(k_lo, k_hi, BLOCK_K):
        ks = (k + offs_k)[None, :]
        w = load_columns(w_rows, ks, k_hi, EVEN_K)
        x = load_columns(x_rows, ks, k_hi, EVEN_K)
        acc = dot(w, tl.trans(x), acc, PRECISION)
        if GLU:
            up = dot(load_columns(up_rows, ks, k_hi, EVEN_K), tl.trans(x), up, PRECISION)
    return acc, up


@triton.jit
def silu_glu(gate, up):
    """silu(gate) * up in f32."""
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def write_tile(
    acc,
    up,
    bias_ptr,
    residual_ptr,
    out_ptr,
    offs_n,
    offs_m,
    N,
    M,
    stride_r,
    stride_o,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    GLU: tl.constexpr,
):
    """Add the bias, activate, add the residual, round once and store; acc and up are [tile of N, tile of M]."""
    mask_n = offs_n < N
    mask = mask_n[:, None] & (offs_m < M)[None, :]
    if HAS_BIAS:
        acc += tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[:, None]
        if GLU:
            up += tl.load(bias_ptr + N + offs_n, mask=mask_n, other=0.0).to(tl.float32)[:, None]
    if GLU:
        acc = silu_glu(acc, up)
    if HAS_RESIDUAL:
        at = offs_m.to(tl.int64)[None, :] * stride_r + offs_n[:, None]
        acc += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    at = offs_m.to(tl.int64)[None, :] * stride_o + offs_n[:, None]
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M"])
def tiled_kernel(
    x_ptr,
    w_ptr,
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
    span,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    ONE_SPAN: tl.constexpr,
    EVEN_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    GLU: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One output tile, all spans. N is the width of `out`; with GLU the weight has 2 * N rows, gate before up."""
    pid_m, pid_n = tile_place(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_M)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    # Rows past the end read the last one; what becomes of them is not stored.
    rows = tl.minimum(offs_n, N - 1).to(tl.int64)
    w_rows = w_ptr + rows * stride_w
    up_rows = w_ptr + (rows + N) * stride_w
    x_rows = x_ptr + tl.minimum(offs_m, M - 1).to(tl.int64) * stride_x
    if ONE_SPAN:
        acc, up = sum_span(w_rows, up_rows, x_rows, 0, K, BLOCK_N, BLOCK_M, BLOCK_K, EVEN_K, GLU, PRECISION)
    else:
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        up = acc
        for k in tl.range(0, K, span, num_stages=1):
            k_hi = tl.minimum(k + span, K)
            part, up_part = sum_span(
                w_rows, up_rows, x_rows, k, k_hi, BLOCK_N, BLOCK_M, BLOCK_K, EVEN_K, GLU, PRECISION
            )
            acc += part
            if GLU:
                up += up_part
    write_tile(
        acc,
        up,
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
        GLU,
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
    PRECISION: tl.constexpr,
):
    """One span (axis 1) of one tile (axis 0 over N, axis 2 over M) into part [spans, M, N] f32."""
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    k_lo = tl.program_id(1) * span
    k_hi = tl.minimum(k_lo + span, K)
    w_rows = w_ptr + tl.minimum(offs_n, N - 1).to(tl.int64) * stride_w
    x_rows = x_ptr + tl.minimum(offs_m, M - 1).to(tl.int64) * stride_x
    acc, _ = sum_span(w_rows, w_rows, x_rows, k_lo, k_hi, BLOCK_N, BLOCK_M, BLOCK_K, EVEN_K, False, PRECISION)
    write_part(acc, part_ptr, tl.program_id(1), offs_n, offs_m, N, M)


@triton.jit
def write_part(acc, part_ptr, s, offs_n, offs_m, N, M):
    """Store the sums of span s into part [spans, M, N] f32."""
    rows = s.to(tl.int64) * M + offs_m
    mask = (offs_n < N)[:, None] & (offs_m < M)[None, :]
    tl.store(part_ptr + rows[None, :] * N + offs_n[:, None], acc, mask=mask)


@triton.jit(do_not_specialize=["M"])
def merge_kernel(
    part_ptr,
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
    GLU: tl.constexpr,
):
    """Add the spans of part [num_spans, M, N, or 2 * N if GLU] ascending; finish and write BLOCK outputs of one row."""
    row = tl.program_id(0).to(tl.int64)
    offs_n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask_n = offs_n < N
    width = N
    if GLU:
        width = 2 * N
    base = part_ptr + row * width + offs_n
    acc = tl.zeros([BLOCK], tl.float32)
    up = acc
    for s in tl.range(0, num_spans):
        at = base + s * M * width
        acc += tl.load(at, mask=mask_n, other=0.0)
        if GLU:
            up += tl.load(at + N, mask=mask_n, other=0.0)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)
        if GLU:
            up += tl.load(bias_ptr + N + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    if GLU:
        acc = silu_glu(acc, up)
    if HAS_RESIDUAL:
        acc += tl.load(residual_ptr + row * stride_r + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * stride_o + offs_n, acc.to(out_ptr.dtype.element_ty), mask=mask_n)
