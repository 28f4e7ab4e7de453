"""Triton body of `embed`: one program per tile of rows and columns."""

# Bodies are in Triton's language, whose ranges and constexpr arguments have no Python types.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl


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
