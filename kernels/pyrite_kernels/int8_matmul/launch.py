"""Checks, grids and committed configurations of `int8_matmul`."""

from __future__ import annotations

from typing import Any

import torch
import triton

from pyrite_kernels.attention_launch import architecture, require
from pyrite_kernels.int8_matmul import kernel
from pyrite_kernels.matmul.launch import (
    GROUP_M,
    MERGE_BLOCK,
    STREAM_ROWS,
    MatmulConfig,
    choose_tile,
    span_length,
)
from pyrite_kernels.w8a8_launch import check_after, check_operands, check_scale

_tiled_kernel: Any = kernel.tiled_kernel
_split_kernel: Any = kernel.split_kernel
_merge_kernel: Any = kernel.merge_kernel

MOST_INPUTS = (1 << 17) - 1
"""Longest row whose sum cannot leave int32: each product is at most 2**14."""


def stream_config(arch: str, rows: int) -> MatmulConfig:
    """The committed configuration of up to STREAM_ROWS rows."""
    block_m = 16 if rows <= 16 else 32 if rows <= 32 else 64
    if arch == "interpreter":
        return MatmulConfig(64, min(block_m, 32), 128, 4, 1)
    if arch == "gfx942":
        return MatmulConfig(64, block_m, 256, 4, 2)
    if arch == "sm_89":
        return MatmulConfig(64, block_m, 256, 4, 3 if block_m < 64 else 2)
    return MatmulConfig(64, block_m, 256, 4, 4 if block_m < 64 else 3)


def tile_configs(arch: str) -> tuple[MatmulConfig, ...]:
    """The committed configurations of many rows, large tiles first; small ones fill the device when rows are few."""
    if arch == "interpreter":
        return (MatmulConfig(64, 64, 128, 4, 1),)
    if arch == "gfx942":
        return (MatmulConfig(128, 128, 128, 8, 2), MatmulConfig(64, 64, 128, 4, 2))
    if arch in ("sm_80", "sm_89"):
        return (MatmulConfig(128, 128, 128, 8, 4 if arch == "sm_80" else 3), MatmulConfig(64, 64, 128, 4, 4))
    return (
        MatmulConfig(128, 256, 128, 8, 4),
        MatmulConfig(128, 128, 128, 8, 4),
        MatmulConfig(64, 128, 128, 4, 4),
    )


def int8_matmul(
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
    """Multiply 8-bit integer rows by an 8-bit integer weight: (x_q weight_q^T) x_scale weight_scale + bias + residual.

    The sum over inputs is exact in int32. It becomes f32 and takes x_scale, weight_scale, bias and residual in this
    order, each rounded by itself; the result is rounded once more. So a row's bits depend on nothing but its operands.

    Args:
        x_q: [rows, in_features] int8, last dim contiguous, as `rms_norm_int8` or `quantize_rows_int8` make it;
            in_features at most 131071.
        x_scale: [rows] f32, contiguous.
        weight_q: [out_features, in_features] int8, last dim contiguous.
        weight_scale: [out_features] f32, contiguous.
        bias: [out_features] f32 | f16 | bf16, contiguous.
        residual: [rows, out_features] f32 | f16 | bf16, last dim contiguous; may be `out`.
        out: [rows, out_features] f32 | f16 | bf16, last dim contiguous.
        out_dtype: of `out` when made here; needed then.
    Returns:
        `out`.
    Raises:
        ValueError: a shape, dtype, device or layout breaks the above.
    """
    check_operands(x_q, weight_q, torch.int8)
    rows, in_features = x_q.shape
    out_features = weight_q.shape[0]
    require(in_features <= MOST_INPUTS, "in_features", in_features, f"at most {MOST_INPUTS}")
    check_scale("x_scale", x_scale, (rows,), x_q.device)
    check_scale("weight_scale", weight_scale, (out_features,), x_q.device)
    out = check_after((rows, out_features), x_q.device, bias, residual, out, out_dtype)
    if rows == 0 or out_features == 0:
        return out
    arch = architecture(x_q.device)
    span = span_length(out_features, in_features)
    spans = triton.cdiv(in_features, span)
    stream = rows <= STREAM_ROWS and spans * rows * out_features < 2**31
    config = stream_config(arch, rows) if stream else choose_tile(tile_configs(arch), rows, out_features)
    common: dict[str, Any] = {
        "BLOCK_N": config.block_n,
        "BLOCK_M": config.block_m,
        "BLOCK_K": config.block_k,
        "EVEN_K": in_features % config.block_k == 0 and (not stream or span % config.block_k == 0),
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "enable_fp_fusion": False,
    }
    after: dict[str, Any] = {"HAS_BIAS": bias is not None, "HAS_RESIDUAL": residual is not None}
    sizes = (rows, out_features, in_features, x_q.stride(0), weight_q.stride(0))
    strides = (0 if residual is None else residual.stride(0), out.stride(0))
    operands = (x_scale if bias is None else bias, x_scale if residual is None else residual, out)
    tiles_n, tiles_m = triton.cdiv(out_features, config.block_n), triton.cdiv(rows, config.block_m)
    if not stream or spans == 1:
        _tiled_kernel[(tiles_m * tiles_n,)](
            x_q, x_scale, weight_q, weight_scale, *operands, *sizes, *strides, GROUP_M=GROUP_M, **after, **common
        )
        return out
    part = torch.empty((spans, rows, out_features), dtype=torch.int32, device=x_q.device)
    _split_kernel[(tiles_n, spans, tiles_m)](x_q, weight_q, part, *sizes, span, **common)
    _merge_kernel[(rows, triton.cdiv(out_features, MERGE_BLOCK))](
        part,
        x_scale,
        weight_scale,
        *operands,
        rows,
        out_features,
        *strides,
        spans,
        BLOCK=MERGE_BLOCK,
        num_warps=4,
        num_stages=1,
        enable_fp_fusion=False,
        **after,
    )
    return out
