"""Triton body of `gate`: one program per tile of rows and columns."""

# Bodies are in Triton's language, whose ranges and constexpr arguments have no Python types.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows"])
def gate_kernel(
    x_ptr,
    gate_ptr,
    out_ptr,
    stride_x,
    stride_gate,
    stride_out,
    num_rows,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """x * sigmoid(gate)."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)[:, None]
    offs_w = (tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W))[None, :]
    mask = (rows < num_rows) & (offs_w < WIDTH)
    x = tl.load(x_ptr + rows * stride_x + offs_w, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + rows * stride_gate + offs_w, mask=mask, other=0.0).to(tl.float32)
    y = x / (1.0 + tl.exp(-gate))
    tl.store(out_ptr + rows * stride_out + offs_w, y.to(out_ptr.dtype.element_ty), mask=mask)
