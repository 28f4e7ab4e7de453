"""Triton bodies of `grouped_matmul`: rows sorted by expert, each times the weight of its own expert.

A tile holds rows of one expert. How many tiles there are is known on the device alone, so the grid has as many programs
as any division of the rows could need; each finds its tile from `group_sizes`, and those that have none end at once.
Sums are those of `matmul` and `qmatmul`, by the same code, and so are a row's bits.
"""

# Bodies are in Triton's language, whose ranges and constexpr arguments have no Python types.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false, reportOperatorIssue=false
# pyright: reportAssignmentType=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl

from pyrite_kernels.matmul.kernel import sum_span as sum_float_span
from pyrite_kernels.matmul.kernel import tile_place
from pyrite_kernels.qmatmul.kernel import row_pointers
from pyrite_kernels.qmatmul.kernel import sum_span as sum_quantized_span


@triton.jit
def load_sizes(sizes_ptr, E, M, BLOCK_E: tl.constexpr):
    """Rows of each expert [BLOCK_E], cut to 0..M."""
    offs_e = tl.arange(0, BLOCK_E)
    sizes = tl.load(sizes_ptr + offs_e, mask=offs_e < E, other=0)
    return tl.minimum(tl.maximum(sizes, 0), M)


@triton.jit
def find_rows(sizes, tile, M, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr):
    """(expert, row_lo, row_hi) of a tile: its first row, and the end of its expert's rows; none if row_lo >= row_hi."""
    offs_e = tl.arange(0, BLOCK_E)
    tiles = (sizes + (BLOCK_M - 1)) // BLOCK_M
    expert = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    before = offs_e < expert
    first = tl.sum(tl.where(before, sizes, 0), 0)
    size = tl.sum(tl.where(offs_e == expert, sizes, 0), 0)
    row_lo = first + (tile - tl.sum(tl.where(before, tiles, 0), 0)) * BLOCK_M
    return expert, row_lo, tl.minimum(first + size, M)


@triton.jit
def sum_expert_span(
    x_rows,
    w_ptr,
    params_ptr,
    expert,
    offs_n,
    k_lo,
    k_hi,
    N,
    stride_we,
    stride_w,
    stride_pe,
    stride_p,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sum K in [k_lo, k_hi) with the weight of an expert, [BLOCK_N, BLOCK_M] f32; BITS 0 is a float weight."""
    w_ptr += expert.to(tl.int64) * stride_we
    if BITS == 0:
        w_rows = w_ptr + tl.minimum(offs_n, N - 1).to(tl.int64) * stride_w
        acc, _ = sum_float_span(w_rows, w_rows, x_rows, k_lo, k_hi, BLOCK_N, BLOCK_M, BLOCK_K, EVEN_K, False, PRECISION)
    else:
        params_ptr += expert.to(tl.int64) * stride_pe
        words_rows, params_rows = row_pointers(w_ptr, params_ptr, offs_n, N, stride_w)
        acc = sum_quantized_span(
            words_rows, params_rows, x_rows, k_lo, k_hi, stride_p, BITS, GROUP, BLOCK_N, BLOCK_M, EVEN_K, PRECISION
        )
    return acc


@triton.jit(do_not_specialize=["M"])
def tiled_kernel(
    x_ptr,
    w_ptr,
    params_ptr,
    sizes_ptr,
    out_ptr,
    M,
    N,
    K,
    E,
    stride_x,
    stride_we,
    stride_w,
    stride_pe,
    stride_p,
    stride_o,
    span,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_E: tl.constexpr,
    GROUP_M: tl.constexpr,
    ONE_SPAN: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One output tile, all spans. With BITS the weight is words, stride_w the number of stored tiles in a row."""
    pid = tl.program_id(0)
    sizes = load_sizes(sizes_ptr, E, M, BLOCK_E)
    num_m = tl.sum((sizes + (BLOCK_M - 1)) // BLOCK_M, 0)
    num_n = tl.cdiv(N, BLOCK_N)
    if pid >= num_m * num_n:
        return
    pid_m, pid_n = tile_place(pid, num_m, num_n, GROUP_M)
    expert, row_lo, row_hi = find_rows(sizes, pid_m, M, BLOCK_M, BLOCK_E)
    if row_lo >= row_hi:
        return
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_m = row_lo + tl.arange(0, BLOCK_M)
    # Rows past the expert's read its last one; what becomes of them is not stored.
    x_rows = x_ptr + tl.minimum(offs_m, row_hi - 1).to(tl.int64) * stride_x
    if ONE_SPAN:
        acc = sum_expert_span(
            x_rows,
            w_ptr,
            params_ptr,
            expert,
            offs_n,
            0,
            K,
            N,
            stride_we,
            stride_w,
            stride_pe,
            stride_p,
            BITS,
            GROUP,
            BLOCK_N,
            BLOCK_M,
            BLOCK_K,
            EVEN_K,
            PRECISION,
        )
    else:
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for k in tl.range(0, K, span, num_stages=1):
            acc += sum_expert_span(
                x_rows,
                w_ptr,
                params_ptr,
                expert,
                offs_n,
                k,
                tl.minimum(k + span, K),
                N,
                stride_we,
                stride_w,
                stride_pe,
                stride_p,
                BITS,
                GROUP,
                BLOCK_N,
                BLOCK_M,
                BLOCK_K,
                EVEN_K,
                PRECISION,
            )
    mask = (offs_n < N)[:, None] & (offs_m < row_hi)[None, :]
    at = offs_m.to(tl.int64)[None, :] * stride_o + offs_n[:, None]
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M"])
def split_kernel(
    x_ptr,
    w_ptr,
    params_ptr,
    sizes_ptr,
    part_ptr,
    M,
    N,
    K,
    E,
    stride_x,
    stride_we,
    stride_w,
    stride_pe,
    stride_p,
    span,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_E: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One span (axis 1) of one tile (axis 0 over N, axis 2 over tiles of rows) into part [spans, M, N] f32."""
    sizes = load_sizes(sizes_ptr, E, M, BLOCK_E)
    expert, row_lo, row_hi = find_rows(sizes, tl.program_id(2), M, BLOCK_M, BLOCK_E)
    if row_lo >= row_hi:
        return
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_m = row_lo + tl.arange(0, BLOCK_M)
    k_lo = tl.program_id(1) * span
    x_rows = x_ptr + tl.minimum(offs_m, row_hi - 1).to(tl.int64) * stride_x
    acc = sum_expert_span(
        x_rows,
        w_ptr,
        params_ptr,
        expert,
        offs_n,
        k_lo,
        tl.minimum(k_lo + span, K),
        N,
        stride_we,
        stride_w,
        stride_pe,
        stride_p,
        BITS,
        GROUP,
        BLOCK_N,
        BLOCK_M,
        BLOCK_K,
        EVEN_K,
        PRECISION,
    )
    mask = (offs_n < N)[:, None] & (offs_m < row_hi)[None, :]
    rows = tl.program_id(1).to(tl.int64) * M + offs_m
    tl.store(part_ptr + rows[None, :] * N + offs_n[:, None], acc, mask=mask)


@triton.jit(do_not_specialize=["M"])
def merge_kernel(
    part_ptr,
    sizes_ptr,
    out_ptr,
    M,
    N,
    E,
    stride_o,
    num_spans,
    BLOCK: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Add the spans of part [num_spans, M, N] ascending into BLOCK outputs of one row, if the row has an expert."""
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.sum(load_sizes(sizes_ptr, E, M, BLOCK_E), 0):
        return
    offs_n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask_n = offs_n < N
    base = part_ptr + row * N + offs_n
    acc = tl.zeros([BLOCK], tl.float32)
    for s in tl.range(0, num_spans):
        acc += tl.load(base + s * M * N, mask=mask_n, other=0.0)
    tl.store(out_ptr + row * stride_o + offs_n, acc.to(out_ptr.dtype.element_ty), mask=mask_n)


@triton.jit(do_not_specialize=["num_pairs"])
def sort_kernel(ids_ptr, order_ptr, inverse_ptr, sizes_ptr, num_pairs, E, stride_ids, BLOCK: tl.constexpr):
    """Place the pairs of one expert, in their order, after those of lower experts; program E places all other ids."""
    expert = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    below = tl.zeros([BLOCK], tl.int32)
    equal = tl.zeros([BLOCK], tl.int32)
    for lo in tl.range(0, num_pairs, BLOCK):
        ids = load_ids(ids_ptr, lo + offs, num_pairs, E, stride_ids)
        below += (ids < expert).to(tl.int32)
        equal += (ids == expert).to(tl.int32)
    place = tl.sum(below, 0)
    tl.store(sizes_ptr + expert, tl.sum(equal, 0), mask=expert < E)
    for lo in tl.range(0, num_pairs, BLOCK):
        mine = (load_ids(ids_ptr, lo + offs, num_pairs, E, stride_ids) == expert).to(tl.int32)
        places = place + tl.cumsum(mine, 0) - 1
        tl.store(order_ptr + places, lo + offs, mask=mine != 0)
        tl.store(inverse_ptr + lo + offs, places, mask=mine != 0)
        place += tl.sum(mine, 0)


@triton.jit
def load_ids(ids_ptr, pairs, num_pairs, E, stride_ids):
    """Expert ids; E for one that is no expert, and E + 1 past the end."""
    inside = pairs < num_pairs
    ids = tl.load(ids_ptr + pairs.to(tl.int64) * stride_ids, mask=inside, other=0).to(tl.int32)
    ids = tl.where((ids >= 0) & (ids < E), ids, E)
    return tl.where(inside, ids, E + 1)
