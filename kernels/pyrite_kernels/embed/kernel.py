"""Triton bodies of `embed`: one program per tile of rows and columns, of a float or an integer weight."""

# Bodies are in Triton's language, whose ranges and constexpr arguments have no Python types.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from pyrite_kernels.qmatmul.kernel import TILE_ROWS, WORDS, decode_params


@triton.jit(do_not_specialize=["num_rows", "vocab_size"])
def embed_kernel(
    ids_ptr,
    weight_ptr,
    out_ptr,
    stride_weight,
    stride_out,
    num_rows,
    vocab_size,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """weight[ids]; NaN for an id that the weight does not have."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    offs_w = (tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W))[None, :]
    ids = tl.load(ids_ptr + rows, mask=rows < num_rows, other=-1).to(tl.int64)
    known = (ids >= 0) & (ids < vocab_size)
    at = weight_ptr + ids[:, None] * stride_weight + offs_w
    values = tl.load(at, mask=known[:, None] & (offs_w < WIDTH), other=float("nan"))
    mask = (rows < num_rows)[:, None] & (offs_w < WIDTH)
    tl.store(out_ptr + rows[:, None] * stride_out + offs_w, values.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def code_of_slot(words, slot, BITS: tl.constexpr):
    """The codes of slots (i32) of words (i32): bits from `quantized.SLOT_BITS[BITS][slot]` on, around the end."""
    if BITS == 4:  # 11, 15, 19, 31, 3, 7, 23, 27
        bit = tl.where(
            slot < 3, 11 + 4 * slot, tl.where(slot == 3, 31, tl.where(slot < 6, 4 * slot - 13, 4 * slot - 1))
        )
    else:  # 15, 23, 7, 31
        bit = tl.where(slot < 2, 15 + 8 * slot, tl.where(slot == 2, 7, 31))
    turned = words.to(tl.uint32, bitcast=True)
    turned = (turned >> bit.to(tl.uint32)) | (turned << (32 - bit).to(tl.uint32))
    return turned & ((1 << BITS) - 1)


@triton.jit(do_not_specialize=["num_rows", "vocab_size"])
def embed_quantized_kernel(
    ids_ptr,
    words_ptr,
    params_ptr,
    out_ptr,
    stride_out,
    num_rows,
    vocab_size,
    num_blocks,
    params_stride,
    WIDTH: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """(code - zero) * scale of the rows ids, in f32, rounded once; NaN for an id that the weight does not have."""
    SLOTS: tl.constexpr = 32 // BITS
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    offs_w = (tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W))[None, :]
    ids = tl.load(ids_ptr + rows, mask=rows < num_rows, other=-1).to(tl.int64)
    known = ((ids >= 0) & (ids < vocab_size))[:, None] & (offs_w < WIDTH)
    of_row = (ids // TILE_ROWS * num_blocks * TILE_ROWS + ids % TILE_ROWS) * WORDS
    at = of_row[:, None] + (offs_w // (SLOTS * WORDS) * (TILE_ROWS * WORDS) + offs_w % WORDS)
    words = tl.load(words_ptr + at, mask=known, other=0)
    params = tl.load(params_ptr + ((offs_w // GROUP).to(tl.int64) * params_stride + ids[:, None]), mask=known, other=0)
    scale, zero = decode_params(params)
    values = (code_of_slot(words, offs_w // WORDS % SLOTS, BITS).to(tl.float32) - zero) * scale
    values = tl.where(known, values, float("nan"))
    mask = (rows < num_rows)[:, None] & (offs_w < WIDTH)
    tl.store(out_ptr + rows[:, None] * stride_out + offs_w, values.to(out_ptr.dtype.element_ty), mask=mask)
