"""Triton bodies of `qmatmul`: x weight^T where the weight is 4- or 8-bit integers in the form of `QuantizedWeight`.

The order of sums is that of `matmul`: spans of K fixed by the weight's shape, added ascending. Inside a span, blocks of
16 words per row are taken in ascending order; slot p of the words holds 16 consecutive K, and each slot is one dot with
K = 16. A weight is (code - zero) * scale, exact in f32 and rounded once to the dtype of x, in registers: words go from
shared memory to the left operand's layout, and no dequantized weight is stored.

A code becomes a float without a conversion: put into the mantissa of 2^e so that its lowest bit is worth 1, it makes
2^e + code. One multiply-add by the scale gives (2^e + code) * scale - (2^e + zero) * scale, of which each term, and the
result, is exact in f32: at most 13 bits times the 11 of an f16 scale. Source: the bit trick of FasterTransformer's
integer GEMM (Kim et al., "Who Says Elephants Can't Run", arXiv 2211.10017), moved from f16 to f32.
"""

# Bodies are in Triton's language, whose ranges and constexpr arguments have no Python types.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false, reportOperatorIssue=false
# pyright: reportAssignmentType=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl

from pyrite_kernels.attention_tile import dot
from pyrite_kernels.matmul.kernel import load_columns, tile_place, write_part, write_tile

WORDS = tl.constexpr(16)  # words of a row in a block
TILE_ROWS = tl.constexpr(64)  # rows of a stored tile


@triton.jit
def decode_params(params):
    """(scale, zero) in f32 of parameter words: an f16 scale below, the zero above."""
    scale = (params & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    return scale, (params >> 16).to(tl.float32)


@triton.jit
def rotated(words, SLOT: tl.constexpr, BITS: tl.constexpr):
    """`words` u32 turned so that the code of a slot (`quantized.SLOT_BITS`) lies in the mantissa; see `decode_slot`."""
    if BITS == 8:
        if SLOT == 0:
            return words
        elif SLOT == 1:
            return words >> 8
        elif SLOT == 2:
            return words << 8
        else:
            return (words << 16) | (words >> 16)
    elif SLOT < 3:
        return words
    elif SLOT < 6:
        return (words << 12) | (words >> 20)
    else:
        return words >> 12


@triton.jit
def decode_slot(words, scale, zero, SLOT: tl.constexpr, BITS: tl.constexpr):
    """Weights of one slot in f32, exactly: words [rows, 16] u32, scale and zero [rows] f32."""
    LOW: tl.constexpr = 15 if BITS == 8 else 11 + 4 * (SLOT % 3)
    MASK: tl.constexpr = ((1 << BITS) - 1) << LOW
    EXPONENT: tl.constexpr = (127 + 23 - LOW) << 23
    code = ((rotated(words, SLOT, BITS) & MASK) | EXPONENT).to(tl.float32, bitcast=True)
    ONE: tl.constexpr = 1 << (23 - LOW)
    shift = (zero + ONE) * (-scale)
    return tl.fma(code, tl.broadcast_to(scale[:, None], code.shape), tl.broadcast_to(shift[:, None], code.shape))


@triton.jit
def sum_span(
    words_rows,
    params_rows,
    x_rows,
    k_lo,
    k_hi,
    params_stride,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sum K in [k_lo, k_hi): weight . x^T, [BLOCK_N, BLOCK_M] f32. k_lo is a multiple of 128.

    words_rows, params_rows: [BLOCK_N] pointers to the rows' words of block 0, and to their parameters of group 0.
    """
    SLOTS: tl.constexpr = 32 // BITS
    BLOCK_K: tl.constexpr = SLOTS * WORDS
    offs = tl.arange(0, WORDS)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for k in tl.range(k_lo, k_hi, BLOCK_K):
        block = k // BLOCK_K * (TILE_ROWS * WORDS)
        words = tl.load(words_rows[:, None] + (block + offs[None, :])).to(tl.uint32, bitcast=True)
        for slot in tl.static_range(SLOTS):
            if slot * WORDS % GROUP == 0:
                group = (k + slot * WORDS) // GROUP
                scale, zero = decode_params(tl.load(params_rows + group * params_stride))
            x = load_columns(x_rows, (offs + (k + slot * WORDS))[None, :], k_hi, EVEN_K)
            w = decode_slot(words, scale, zero, slot, BITS).to(x.dtype)
            acc = dot(w, tl.trans(x), acc, PRECISION)
    return acc


@triton.jit
def row_pointers(words_ptr, params_ptr, offs_n, N, num_blocks):
    """(words_rows, params_rows) of weight rows; one past the end reads the last row, and is not stored."""
    rows = tl.minimum(offs_n, N - 1)
    tile = (rows // TILE_ROWS).to(tl.int64) * num_blocks * (TILE_ROWS * WORDS)
    return words_ptr + (tile + rows % TILE_ROWS * WORDS), params_ptr + rows


@triton.jit(do_not_specialize=["M"])
def tiled_kernel(
    x_ptr,
    words_ptr,
    params_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    M,
    N,
    K,
    stride_x,
    stride_r,
    stride_o,
    num_blocks,
    params_stride,
    span,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    GROUP_M: tl.constexpr,
    ONE_SPAN: tl.constexpr,
    EVEN_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One output tile, all spans."""
    pid_m, pid_n = tile_place(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_M)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    words_rows, params_rows = row_pointers(words_ptr, params_ptr, offs_n, N, num_blocks)
    x_rows = x_ptr + tl.minimum(offs_m, M - 1).to(tl.int64) * stride_x
    if ONE_SPAN:
        acc = sum_span(
            words_rows, params_rows, x_rows, 0, K, params_stride, BITS, GROUP, BLOCK_N, BLOCK_M, EVEN_K, PRECISION
        )
    else:
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for k in tl.range(0, K, span, num_stages=1):
            k_hi = tl.minimum(k + span, K)
            acc += sum_span(
                words_rows,
                params_rows,
                x_rows,
                k,
                k_hi,
                params_stride,
                BITS,
                GROUP,
                BLOCK_N,
                BLOCK_M,
                EVEN_K,
                PRECISION,
            )
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
    words_ptr,
    params_ptr,
    part_ptr,
    M,
    N,
    K,
    stride_x,
    num_blocks,
    params_stride,
    span,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One span (axis 1) of one tile (axis 0 over N, axis 2 over M) into part [spans, M, N] f32."""
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    k_lo = tl.program_id(1) * span
    k_hi = tl.minimum(k_lo + span, K)
    words_rows, params_rows = row_pointers(words_ptr, params_ptr, offs_n, N, num_blocks)
    x_rows = x_ptr + tl.minimum(offs_m, M - 1).to(tl.int64) * stride_x
    acc = sum_span(
        words_rows, params_rows, x_rows, k_lo, k_hi, params_stride, BITS, GROUP, BLOCK_N, BLOCK_M, EVEN_K, PRECISION
    )
    write_part(acc, part_ptr, tl.program_id(1), offs_n, offs_m, N, M)
