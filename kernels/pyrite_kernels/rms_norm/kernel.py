"""Triton body of `rms_norm`: programs walk over tiles of whole rows, each row held in registers."""

# Bodies are in Triton's language, whose ranges and constexpr arguments have no Python types.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false, reportOperatorIssue=false
# pyright: reportPossiblyUnboundVariable=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl

from pyrite_kernels.store_kv.kernel import encode_e4m3, encode_int8


@triton.jit
def largest(y, AXIS: tl.constexpr):
    """The largest |y| along an axis, NaN where there is one: as integers, NaN is above infinity."""
    bits = tl.max(y.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=AXIS)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def scale_and_inverse(top, LIMIT: tl.constexpr):
    """(top / LIMIT, LIMIT / top); both are 0 where top is below 1e-30, whose inverse could overflow."""
    tiny = top < 1e-30
    scale = tl.div_rn(top, tl.zeros_like(top) + LIMIT)
    inverse = tl.div_rn(tl.zeros_like(top) + LIMIT, tl.where(tiny, 1.0, top))
    return tl.where(tiny, 0.0, scale), tl.where(tiny, 0.0, inverse)


@triton.jit
def encode(y, CODES: tl.constexpr):
    """Codes of scaled values: "int8", "fp8" (e4m3 bits by the part's own conversion) or "fp8_bits" (by integers)."""
    if CODES == "int8":
        return encode_int8(y)
    elif CODES == "fp8":
        return y.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    else:
        return encode_e4m3(y)


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_kernel(
    x_ptr,
    weight_ptr,
    residual_ptr,
    out_ptr,
    scale_ptr,
    stride_x,
    stride_residual,
    stride_out,
    stride_scale,
    num_rows,
    eps,
    weight_offset,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    CODES: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Norm BLOCK_R rows at a time. CODES "none" stores the result, others its codes and a scale for GROUP elements."""
    offs_w = tl.arange(0, BLOCK_W)[None, :]
    mask_w = offs_w < WIDTH
    if HAS_WEIGHT:  # one copy for each row of the tile, so that it has the layout of the rows
        at = weight_ptr + (offs_w + tl.zeros([BLOCK_R, 1], tl.int32))
        weight = tl.load(at, mask=mask_w, other=0.0).to(tl.float32) + weight_offset
    for tile in range(tl.program_id(0), tl.cdiv(num_rows, BLOCK_R), tl.num_programs(0)):
        rows = (tile * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
        mask = (rows < num_rows)[:, None] & mask_w
        x = tl.load(x_ptr + rows[:, None] * stride_x + offs_w, mask=mask, other=0.0).to(tl.float32)
        if HAS_RESIDUAL:
            at_residual = residual_ptr + rows[:, None] * stride_residual + offs_w
            total = x + tl.load(at_residual, mask=mask, other=0.0).to(tl.float32)
            rounded = total.to(residual_ptr.dtype.element_ty)
            tl.store(at_residual, rounded, mask=mask)
            x = rounded.to(tl.float32)
        mean = tl.div_rn(tl.sum(x * x, axis=1), tl.zeros([BLOCK_R], tl.float32) + WIDTH)
        y = x * tl.div_rn(tl.zeros([BLOCK_R], tl.float32) + 1.0, tl.sqrt_rn(mean + eps))[:, None]
        if HAS_WEIGHT:
            y = y * weight
        at_out = out_ptr + rows[:, None] * stride_out + offs_w
        if CODES == "none":
            tl.store(at_out, y.to(out_ptr.dtype.element_ty), mask=mask)
        else:
            LIMIT: tl.constexpr = 127.0 if CODES == "int8" else 448.0
            if GROUP == WIDTH:
                scale, inverse = scale_and_inverse(largest(y, 1), LIMIT)
                tl.store(scale_ptr + rows * stride_scale, scale, mask=rows < num_rows)
                y = y * inverse[:, None]
            else:
                groups = tl.reshape(y, [BLOCK_R, BLOCK_W // GROUP, GROUP])
                scale, inverse = scale_and_inverse(largest(groups, 2), LIMIT)
                offs_g = tl.arange(0, BLOCK_W // GROUP)[None, :]
                mask_g = (rows < num_rows)[:, None] & (offs_g < WIDTH // GROUP)
                tl.store(scale_ptr + rows[:, None] * stride_scale + offs_g, scale, mask=mask_g)
                y = tl.reshape(groups * inverse[:, :, None], [BLOCK_R, BLOCK_W])
            tl.store(at_out, encode(y, CODES), mask=mask)
