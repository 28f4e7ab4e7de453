"""Triton bodies of `quantize_rows`: the codes and scales of `rms_norm`'s forms that quantize, by the same code."""

# Bodies are in Triton's language, whose ranges and constexpr arguments have no Python types.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false, reportOperatorIssue=false
# pyright: reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl

from pyrite_kernels.rms_norm.kernel import encode, largest, scale_and_inverse


@triton.jit
def load_tile(x_ptr, rows, offs_w, stride_x, num_rows, WIDTH: tl.constexpr):
    """(values f32, mask) of rows and columns; 0 outside."""
    mask = (rows < num_rows)[:, None] & (offs_w < WIDTH)[None, :]
    x = tl.load(x_ptr + rows[:, None] * stride_x + offs_w[None, :], mask=mask, other=0.0)
    return x.to(tl.float32), mask


@triton.jit(do_not_specialize=["num_rows"])
def rows_kernel(
    x_ptr,
    out_ptr,
    scale_ptr,
    stride_x,
    stride_out,
    num_rows,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
    CODES: tl.constexpr,
):
    """One scale for each of BLOCK_R rows; rows wider than BLOCK_W are read twice."""
    LIMIT: tl.constexpr = 127.0 if CODES == "int8" else 448.0
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    offs_w = tl.arange(0, BLOCK_W)
    x, mask = load_tile(x_ptr, rows, offs_w, stride_x, num_rows, WIDTH)
    top = largest(x, 1)
    for lo in tl.range(BLOCK_W, WIDTH, BLOCK_W):
        more, _ = load_tile(x_ptr, rows, lo + offs_w, stride_x, num_rows, WIDTH)
        # Not negative, or NaN: as integers NaN is the largest.
        bits = tl.maximum(top.to(tl.int32, bitcast=True), largest(more, 1).to(tl.int32, bitcast=True))
        top = bits.to(tl.float32, bitcast=True)
    scale, inverse = scale_and_inverse(top, LIMIT)
    tl.store(scale_ptr + rows, scale, mask=rows < num_rows)
    at = out_ptr + rows[:, None] * stride_out
    tl.store(at + offs_w[None, :], encode(x * inverse[:, None], CODES), mask=mask)
    for lo in tl.range(BLOCK_W, WIDTH, BLOCK_W):
        more, mask = load_tile(x_ptr, rows, lo + offs_w, stride_x, num_rows, WIDTH)
        tl.store(at + (lo + offs_w)[None, :], encode(more * inverse[:, None], CODES), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def groups_kernel(
    x_ptr,
    out_ptr,
    scale_ptr,
    stride_x,
    stride_out,
    stride_scale,
    num_rows,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
    CODES: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One scale for GROUP elements of a row."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    offs_w = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    x, mask = load_tile(x_ptr, rows, offs_w, stride_x, num_rows, WIDTH)
    groups = tl.reshape(x, [BLOCK_R, BLOCK_W // GROUP, GROUP])
    scale, inverse = scale_and_inverse(largest(groups, 2), 448.0)
    offs_g = tl.program_id(1) * (BLOCK_W // GROUP) + tl.arange(0, BLOCK_W // GROUP)
    mask_g = (rows < num_rows)[:, None] & (offs_g < WIDTH // GROUP)[None, :]
    tl.store(scale_ptr + rows[:, None] * stride_scale + offs_g[None, :], scale, mask=mask_g)
    codes = encode(tl.reshape(groups * inverse[:, :, None], [BLOCK_R, BLOCK_W]), CODES)
    tl.store(out_ptr + rows[:, None] * stride_out + offs_w[None, :], codes, mask=mask)
