"""Checks, grids and committed configurations of `qmatmul`."""

from __future__ import annotations

from typing import Any

import torch
import triton

from pyrite_kernels.attention_launch import architecture, dot_precision, require
from pyrite_kernels.matmul.launch import (
    GROUP_M,
    STREAM_ROWS,
    MatmulConfig,
    check_epilogue,
    check_rows,
    choose_tile,
    merge,
    scratch,
    span_length,
)
from pyrite_kernels.qmatmul import kernel
from pyrite_kernels.quantized import QuantizedWeight, block_inputs

_tiled_kernel: Any = kernel.tiled_kernel
_split_kernel: Any = kernel.split_kernel


def stream_config(arch: str, itemsize: int, bits: int, rows: int) -> MatmulConfig:
    """The committed configuration of up to STREAM_ROWS rows: 64 weight rows of four warps, as `matmul` has."""
    block_m = 16 if rows <= 16 else 32 if rows <= 32 else 64
    block_k = block_inputs(bits)
    if arch == "interpreter":
        return MatmulConfig(64, min(block_m, 32), block_k, 4, 1)
    if arch == "gfx942":
        return MatmulConfig(64, max(block_m, 32), block_k, 4, 2)
    if itemsize == 4:
        return MatmulConfig(64, min(block_m, 32), block_k, 4, 3)
    return MatmulConfig(64, block_m, block_k, 4, 4)


def tile_configs(arch: str, itemsize: int, bits: int, one_span: bool) -> tuple[MatmulConfig, ...]:
    """The committed configurations of many rows, large tiles first; several spans need a second accumulator.

    On sm_100 Triton 3.6 gives every dot of the unrolled slots an accumulator in tensor memory of its own, and a tile of
    more than 64 tokens does not fit: it compiles to a trap.
    """
    block_k = block_inputs(bits)
    if arch == "interpreter":
        return (MatmulConfig(64, 64, block_k, 4, 1),)
    if itemsize == 4:
        return (MatmulConfig(64, 32, block_k, 4, 2),)
    if arch == "gfx942":
        return (MatmulConfig(128, 128, block_k, 8, 2), MatmulConfig(64, 64, block_k, 4, 2))
    small = MatmulConfig(64, 64, block_k, 4, 3 if arch == "sm_89" else 4)
    middle = MatmulConfig(128, 128, block_k, 8, {"sm_80": 3, "sm_89": 2}.get(arch, 4))
    if arch == "sm_100":
        return (small,)
    if one_span and arch == "sm_90":
        return (MatmulConfig(128, 256, block_k, 8, 3 if bits == 4 else 4), middle, small)
    return (middle, small)


def qmatmul(
    x: torch.Tensor,
    qweight: QuantizedWeight,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply rows by an integer weight: x weight^T + bias + residual, rounded once.

    A weight is (code - zero) * scale, exact, rounded to the dtype of x; the sums are as in `matmul`: a row's result
    does not depend on the number of rows or on the other rows.

    Args:
        x: [rows, in_features] f32 | f16 | bf16, last dim contiguous.
        qweight: of two dimensions.
        bias: [out_features] f32 | f16 | bf16, contiguous.
        residual: [rows, out_features] f32 | f16 | bf16, last dim contiguous; may be `out`.
        out: [rows, out_features], dtype of x or f32, last dim contiguous, not over x; dtype of x when made here.
    Returns:
        `out`; sums and epilogue in f32.
    Raises:
        ValueError: a shape, dtype, device or layout breaks the above.
    """
    require(len(qweight.shape) == 2, "shape of qweight", qweight.shape, "[out_features, in_features]")
    require(qweight.device == x.device, "device of qweight", qweight.device, x.device)
    out_features, in_features = qweight.shape
    check_rows(x, in_features)
    out = check_epilogue(x, out_features, out_features, bias, residual, out)
    rows = x.shape[0]
    if rows == 0:
        return out
    require(qweight.params.numel() < 2**31, "groups of qweight", qweight.params.numel(), "below 2**31")
    arch = architecture(x.device)
    span = span_length(out_features, in_features)
    one_span = span >= in_features
    stream = rows <= STREAM_ROWS
    if stream:
        config = stream_config(arch, x.element_size(), qweight.bits, rows)
    else:
        config = choose_tile(tile_configs(arch, x.element_size(), qweight.bits, one_span), rows, out_features)
    common: dict[str, Any] = {
        "BITS": qweight.bits,
        "GROUP": qweight.group_size,
        "BLOCK_N": config.block_n,
        "BLOCK_M": config.block_m,
        "EVEN_K": in_features % config.block_k == 0,
        "PRECISION": dot_precision(arch),
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "enable_fp_fusion": False,
    }
    tiles_n, tiles_m = triton.cdiv(out_features, config.block_n), triton.cdiv(rows, config.block_m)
    where = (qweight.words.shape[1], qweight.params.shape[1], span)
    if stream and not one_span:
        spans = triton.cdiv(in_features, span)
        part = scratch(spans, rows, out_features, x.device)
        _split_kernel[(tiles_n, spans, tiles_m)](
            x, qweight.words, qweight.params, part, rows, out_features, in_features, x.stride(0), *where, **common
        )
        return merge(part, bias, residual, out)
    _tiled_kernel[(tiles_m * tiles_n,)](
        x,
        qweight.words,
        qweight.params,
        x if bias is None else bias,
        x if residual is None else residual,
        out,
        rows,
        out_features,
        in_features,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        out.stride(0),
        *where,
        GROUP_M=GROUP_M,
        ONE_SPAN=one_span,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        **common,
    )
    return out
