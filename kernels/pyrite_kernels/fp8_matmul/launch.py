"""Checks, grids and committed configurations of `fp8_matmul`."""

from __future__ import annotations

from typing import Any

import torch
import triton

from pyrite_kernels.attention_launch import FP8, architecture, dot_precision, require
from pyrite_kernels.fp8_matmul import kernel
from pyrite_kernels.matmul.launch import (
    GROUP_M,
    MERGE_BLOCK,
    STREAM_ROWS,
    MatmulConfig,
    choose_tile,
    scratch,
    span_length,
)
from pyrite_kernels.w8a8_launch import check_after, check_operands, check_scale

_tiled_kernel: Any = kernel.tiled_kernel
_split_kernel: Any = kernel.split_kernel
_merge_kernel: Any = kernel.merge_kernel

FP8_BLOCK = 128
"""Inputs, and weight rows, that share a scale in the blockwise form; and inputs between two promotions to f32."""


def operand_kind(arch: str) -> str:
    """What a part multiplies: "fp8" is its own e4m3, "fp8_bits" f16 of the same values; see `kernel.decode`."""
    return "fp8" if arch in ("sm_89", "sm_90", "sm_100") else "fp8_bits"


def stream_config(arch: str, rows: int) -> MatmulConfig:
    """The committed configuration of up to STREAM_ROWS rows."""
    block_m = 16 if rows <= 16 else 32 if rows <= 32 else 64
    if arch == "interpreter":
        return MatmulConfig(64, min(block_m, 32), FP8_BLOCK, 4, 1)
    if arch == "gfx942":
        return MatmulConfig(64, max(block_m, 32), FP8_BLOCK, 4, 2)
    return MatmulConfig(64, block_m, FP8_BLOCK, 4, 4 if arch == "sm_89" else 6)


def tile_configs(arch: str, one_span: bool, blockwise: bool) -> tuple[MatmulConfig, ...]:
    """The committed configurations of many rows, large tiles first.

    The sums of a block, of its span and of all spans are held side by side, and so are the scales of a tile's tokens:
    where they would not fit the registers, tiles have fewer tokens. A tile lies within 128 weight rows, which share
    their scales.
    """
    if arch == "interpreter":
        return (MatmulConfig(64, 64, FP8_BLOCK, 4, 1),)
    if arch == "gfx942":
        return (MatmulConfig(64, 64, FP8_BLOCK, 4, 2),)
    small = MatmulConfig(64, 64, FP8_BLOCK, 4, 4)
    crowded = not one_span and (blockwise or arch == "sm_80")
    tokens = 64 if crowded or (blockwise and arch == "sm_100") else 128
    return (MatmulConfig(128, tokens, FP8_BLOCK, 8, 3 if arch == "sm_89" else 4), small)


def fp8_matmul(
    x_q: torch.Tensor,
    x_scale: torch.Tensor,
    weight_q: torch.Tensor,
    weight_scale: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Multiply e4m3 rows by an e4m3 weight, with scales of rows and channels or of blocks of 128.

    Sums are promoted to f32 after each 128 inputs, and spans of K, fixed by the weight's shape, are added ascending:
    a row's result does not depend on the number of rows or on the other rows. sm_89 and later multiply e4m3 itself;
    sm_80, which cannot, and gfx942, whose own e4m3 is another format, multiply the same values as f16, exactly as well.

    Args:
        x_q: [rows, in_features] float8_e4m3fn, last dim contiguous, as `rms_norm_fp8` or `quantize_rows_fp8` make it.
        x_scale: [rows] f32; or blockwise [rows, in_features / 128], last dim contiguous.
        weight_q: [out_features, in_features] float8_e4m3fn, last dim contiguous, without NaN.
        weight_scale: [out_features] f32; or blockwise [ceil(out_features / 128), in_features / 128], last dim
            contiguous, in_features a multiple of 128. Both scales are of one kind.
        bias: [out_features] f32 | f16 | bf16, contiguous.
        residual: [rows, out_features] f32 | f16 | bf16, last dim contiguous; may be `out`.
        out: [rows, out_features] f32 | f16 | bf16, last dim contiguous.
        out_dtype: of `out` when made here; needed then.
    Returns:
        `out`; sums and epilogue in f32, rounded once. A row whose scale is NaN is NaN.
    Raises:
        ValueError: a shape, dtype, device or layout breaks the above.
    Source: scales of blocks as DeepSeek-V3, arXiv 2412.19437.
    """
    out, blockwise = _checked(x_q, x_scale, weight_q, weight_scale, bias, residual, out, out_dtype)
    rows, out_features = out.shape
    if rows == 0 or out_features == 0:
        return out
    in_features = x_q.shape[1]
    arch = architecture(x_q.device)
    span = span_length(out_features, in_features)
    one_span = span >= in_features
    stream = rows <= STREAM_ROWS
    config = (
        stream_config(arch, rows)
        if stream
        else choose_tile(tile_configs(arch, one_span, blockwise), rows, out_features)
    )
    common: dict[str, Any] = {
        "BLOCK_N": config.block_n,
        "BLOCK_M": config.block_m,
        "EVEN_K": in_features % FP8_BLOCK == 0,
        "BLOCKWISE": blockwise,
        "CODES": operand_kind(arch),
        "PRECISION": dot_precision(arch),
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "enable_fp_fusion": False,
    }
    after: dict[str, Any] = {"HAS_BIAS": bias is not None, "HAS_RESIDUAL": residual is not None}
    operands = (x_q.view(torch.uint8), x_scale, weight_q.view(torch.uint8), weight_scale)
    sizes = (rows, out_features, in_features)
    strides = (x_q.stride(0), x_scale.stride(0), weight_q.stride(0), weight_scale.stride(0))
    ends = (x_scale if bias is None else bias, x_scale if residual is None else residual, out)
    end_strides = (0 if residual is None else residual.stride(0), out.stride(0))
    tiles_n, tiles_m = triton.cdiv(out_features, config.block_n), triton.cdiv(rows, config.block_m)
    if not stream or one_span:
        _tiled_kernel[(tiles_m * tiles_n,)](
            *operands,
            *ends,
            *sizes,
            *strides,
            *end_strides,
            span,
            GROUP_M=GROUP_M,
            ONE_SPAN=one_span,
            **after,
            **common,
        )
        return out
    spans = triton.cdiv(in_features, span)
    part = scratch(spans, rows, out_features, x_q.device)
    _split_kernel[(tiles_n, spans, tiles_m)](*operands, part, *sizes, *strides, span, **common)
    _merge_kernel[(rows, triton.cdiv(out_features, MERGE_BLOCK))](
        part,
        x_scale,
        weight_scale,
        *ends,
        rows,
        out_features,
        *end_strides,
        spans,
        BLOCK=MERGE_BLOCK,
        BLOCKWISE=blockwise,
        num_warps=4,
        num_stages=1,
        enable_fp_fusion=False,
        **after,
    )
    return out


def _checked(
    x_q: torch.Tensor,
    x_scale: torch.Tensor,
    weight_q: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor | None,
    out_dtype: torch.dtype | None,
) -> tuple[torch.Tensor, bool]:
    """Check everything; the `out` to write, and whether scales are of blocks."""
    check_operands(x_q, weight_q, FP8)
    rows, in_features = x_q.shape
    out_features = weight_q.shape[0]
    blockwise = weight_scale.ndim == 2
    x_shape, weight_shape = (rows,), (out_features,)
    if blockwise:
        require(
            in_features % FP8_BLOCK == 0, "in_features", in_features, f"a multiple of {FP8_BLOCK} with block scales"
        )
        blocks = in_features // FP8_BLOCK
        x_shape, weight_shape = (rows, blocks), (triton.cdiv(out_features, FP8_BLOCK), blocks)
    check_scale("x_scale", x_scale, x_shape, x_q.device)
    check_scale("weight_scale", weight_scale, weight_shape, x_q.device)
    return check_after((rows, out_features), x_q.device, bias, residual, out, out_dtype), blockwise
