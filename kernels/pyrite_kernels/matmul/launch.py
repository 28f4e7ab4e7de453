"""Checks, spans, grids and committed configurations of `matmul` and `matmul_glu`; `qmatmul` uses some of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton

from pyrite_kernels.attention_launch import FLOATS, architecture, dot_precision, require
from pyrite_kernels.matmul import kernel
from pyrite_kernels.testing import interpreted

_tiled_kernel: Any = kernel.tiled_kernel
_split_kernel: Any = kernel.split_kernel
_merge_kernel: Any = kernel.merge_kernel

STREAM_ROWS = 64
"""Up to so many rows the weight is streamed: its bytes are what takes the time, and spans run side by side."""

SPAN_ALIGN = 128
"""Spans begin at multiples of it: whole blocks of a quantized weight and whole K tiles."""

WANTED_PROGRAMS = 256
SHORTEST_SPAN = 512
MERGE_BLOCK = 512
GROUP_M = 8
_FILLING_PROGRAMS = 128


def span_length(out_features: int, in_features: int) -> int:
    """How many of a row's inputs make a span: a function of the weight's shape alone, so that no load changes a bit.

    Narrow weights are cut until 64-row tiles times spans make WANTED_PROGRAMS, or spans would be under SHORTEST_SPAN.

    Args:
        out_features, in_features: shape of the weight; gate and up together for a GLU.

    Returns:
        A multiple of SPAN_ALIGN; at least in_features where one span holds all.
    """
    tiles, spans = triton.cdiv(out_features, 64), 1
    while tiles * spans < WANTED_PROGRAMS and in_features >= 2 * spans * SHORTEST_SPAN:
        spans *= 2
    return triton.cdiv(triton.cdiv(in_features, spans), SPAN_ALIGN) * SPAN_ALIGN


@dataclass(frozen=True)
class MatmulConfig:
    """How a kernel is compiled: weight rows, tokens and K of a tile, warps, stages of the pipeline over K."""

    block_n: int
    block_m: int
    block_k: int
    num_warps: int
    num_stages: int


def stream_config(arch: str, itemsize: int, rows: int) -> MatmulConfig:
    """The committed configuration of up to STREAM_ROWS rows.

    64 weight rows are what one group of four warps multiplies by wgmma, so that Hopper uses in both forms the one
    instruction; on gfx942 32 tokens are the least that take the matrix instruction of the large tiles.
    """
    block_m = 16 if rows <= 16 else 32 if rows <= 32 else 64
    if arch == "interpreter":
        return MatmulConfig(64, min(block_m, 32), 64, 4, 1)
    if arch == "gfx942":
        return MatmulConfig(64, max(block_m, 32), 128 if itemsize == 2 else 32, 4, 2)
    if itemsize == 4:
        return MatmulConfig(64, block_m, 32, 4, 3)
    if arch == "sm_89":
        return MatmulConfig(64, block_m, 128 if block_m < 64 else 64, 4, 3)
    return MatmulConfig(64, block_m, 128, 4, 4 if block_m < 64 else 3)


def tile_configs(arch: str, itemsize: int, one_span: bool, glu: bool) -> tuple[MatmulConfig, ...]:
    """The committed configurations of many rows, large tiles first; small ones fill the device when rows are few.

    Several spans need a second accumulator, and a GLU needs two of each: then tiles are smaller.
    """
    if arch == "interpreter":
        return (MatmulConfig(64, 64, 64, 4, 1),)
    if itemsize == 4:
        return (MatmulConfig(64, 32 if glu else 64, 32, 4, 2 if arch == "gfx942" else 3),)
    small = MatmulConfig(64, 64 if glu else 128, 64, 4, 3)
    if arch == "gfx942":
        return (MatmulConfig(64 if glu else 128, 128, 64, 8, 2), MatmulConfig(64, 64, 64, 4, 2))
    if arch == "sm_89":
        return (MatmulConfig(64 if glu else 128, 128, 32, 8, 4), MatmulConfig(64, 64, 64, 4, 3))
    if arch == "sm_80":
        wide = (
            MatmulConfig(128, 256, 64, 8, 3)
            if one_span and not glu
            else MatmulConfig(64 if glu else 128, 128, 32, 8, 4)
        )
        return (wide, small)
    middle = MatmulConfig(64 if glu else 128, 128, 64, 8, 4)
    wide = MatmulConfig(64 if glu else 128, 256, 64, 8, 4)
    return (wide, middle, small) if one_span else (middle, small)


def choose_tile(configs: tuple[MatmulConfig, ...], rows: int, width: int) -> MatmulConfig:
    """The first configuration with enough tiles to fill a device, else the last. It changes no bit of a result."""
    for config in configs:
        if triton.cdiv(rows, config.block_m) * triton.cdiv(width, config.block_n) >= _FILLING_PROGRAMS:
            return config
    return configs[-1]


def matmul(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply rows by a weight: x weight^T + bias + residual, rounded once.

    K is cut into spans by the weight's shape and the spans are added ascending in f32, with few rows as with many: a
    row's result does not depend on the number of rows or on the other rows.

    Args:
        x: [rows, in_features] f32 | f16 | bf16, last dim contiguous.
        weight: [out_features, in_features], dtype of x, last dim contiguous.
        bias: [out_features] f32 | f16 | bf16, contiguous.
        residual: [rows, out_features] f32 | f16 | bf16, last dim contiguous; may be `out`.
        out: [rows, out_features], dtype of x or f32, last dim contiguous, not over x; dtype of x when made here.
    Returns:
        `out`; sums and epilogue in f32.
    Raises:
        ValueError: a shape, dtype, device or layout breaks the above.
    """
    out = _checked(x, weight, weight.shape[:1], bias, residual, out)
    return _run(x, weight, bias, residual, out, glu=False)


def matmul_glu(
    x: torch.Tensor,
    weight_gate_up: torch.Tensor,
    *,
    activation: str = "silu",
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply rows by gate and up at once and join them: activation(x gate^T + bias) * (x up^T + bias), rounded once.

    Bits of a row are as free of the other rows as those of `matmul`.

    Args:
        x: [rows, in_features] f32 | f16 | bf16, last dim contiguous.
        weight_gate_up: [2 * width, in_features], dtype of x, last dim contiguous: rows of gate, then those of up.
        activation: "silu", which is z / (1 + exp(-z)).
        bias: [2 * width] f32 | f16 | bf16, contiguous.
        out: [rows, width], dtype of x or f32, last dim contiguous; dtype of x when made here.
    Returns:
        `out`; sums and activation in f32.
    Raises:
        ValueError: a shape, dtype, device or layout breaks the above, or the activation is another.
    Source: gated linear units, arXiv 2002.05202.
    """
    require(activation == "silu", "activation", repr(activation), "'silu'")
    require(weight_gate_up.shape[0] % 2 == 0, "rows of weight_gate_up", weight_gate_up.shape[0], "an even number")
    out = _checked(x, weight_gate_up, (weight_gate_up.shape[0] // 2,), bias, None, out)
    return _run(x, weight_gate_up, bias, None, out, glu=True)


def _run(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor,
    glu: bool,
) -> torch.Tensor:
    rows, width = out.shape
    out_features, in_features = weight.shape
    if rows == 0 or width == 0:
        return out
    arch = architecture(x.device)
    span = span_length(out_features, in_features)
    one_span = span >= in_features
    stream = rows <= STREAM_ROWS
    if stream:
        config = stream_config(arch, x.element_size(), rows)
    else:
        config = choose_tile(tile_configs(arch, x.element_size(), one_span, glu), rows, width)
    common: dict[str, Any] = {
        "BLOCK_N": config.block_n,
        "BLOCK_M": config.block_m,
        "BLOCK_K": config.block_k,
        "EVEN_K": in_features % config.block_k == 0,
        "PRECISION": dot_precision(arch),
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "enable_fp_fusion": False,
    }
    tiles_m = triton.cdiv(rows, config.block_m)
    if stream and not one_span:
        spans = triton.cdiv(in_features, span)
        part = scratch(spans, rows, out_features, x.device)
        _split_kernel[(triton.cdiv(out_features, config.block_n), spans, tiles_m)](
            x, weight, part, rows, out_features, in_features, x.stride(0), weight.stride(0), span, **common
        )
        return merge(part, bias, residual, out, glu)
    _tiled_kernel[(tiles_m * triton.cdiv(width, config.block_n),)](
        x,
        weight,
        x if bias is None else bias,
        x if residual is None else residual,
        out,
        rows,
        width,
        in_features,
        x.stride(0),
        weight.stride(0),
        0 if residual is None else residual.stride(0),
        out.stride(0),
        span,
        GROUP_M=GROUP_M,
        ONE_SPAN=one_span,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        GLU=glu,
        **common,
    )
    return out


def scratch(spans: int, rows: int, out_features: int, device: torch.device) -> torch.Tensor:
    """Room for the sums of all spans, [spans, rows, out_features] f32.

    Raises:
        ValueError: it would have 2**31 elements or more.
    """
    require(spans * rows * out_features < 2**31, "size of the scratch memory", (spans, rows, out_features), "less")
    return torch.empty((spans, rows, out_features), dtype=torch.float32, device=device)


def merge(
    part: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, out: torch.Tensor, glu: bool = False
) -> torch.Tensor:
    """Add the spans of part [spans, rows, out_features] ascending, then bias, activation and residual, into `out`."""
    rows, width = out.shape
    _merge_kernel[(rows, triton.cdiv(width, MERGE_BLOCK))](
        part,
        part if bias is None else bias,
        part if residual is None else residual,
        out,
        rows,
        width,
        0 if residual is None else residual.stride(0),
        out.stride(0),
        part.shape[0],
        BLOCK=MERGE_BLOCK,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        GLU=glu,
        num_warps=4,
        num_stages=1,
        enable_fp_fusion=False,
    )
    return out


def _checked(
    x: torch.Tensor,
    weight: torch.Tensor,
    width: tuple[int, ...],
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    """Check everything of a float weight; the `out` to write."""
    require(weight.ndim == 2, "shape of weight", tuple(weight.shape), "[out_features, in_features]")
    require(weight.dtype == x.dtype, "dtype of weight", weight.dtype, x.dtype)
    require(weight.device == x.device, "device of weight", weight.device, x.device)
    require(weight.shape[1] == 1 or weight.stride(1) == 1, "last stride of weight", weight.stride(1), 1)
    check_rows(x, weight.shape[1])
    return check_epilogue(x, weight.shape[0], width[0], bias, residual, out)


def check_rows(x: torch.Tensor, in_features: int) -> None:
    """Check the rows to multiply.

    Raises:
        ValueError: a shape, dtype or layout does not fit a weight of so many inputs.
    """
    fits = x.ndim == 2 and x.shape[1] == in_features and in_features > 0
    require(fits, "shape of x", tuple(x.shape), f"[rows, {in_features}], at least one input")
    require(x.dtype in FLOATS, "dtype of x", x.dtype, FLOATS)
    bad = interpreted() and x.dtype == torch.bfloat16
    require(not bad, "dtype of x", x.dtype, "float16 or float32 in Triton's interpreter")
    require(in_features == 1 or x.stride(1) == 1, "last stride of x", x.stride(1), 1)


def check_epilogue(
    x: torch.Tensor,
    out_features: int,
    width: int,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    """Check what comes after the sums; `out`, made when None.

    Raises:
        ValueError: a shape, dtype, device or layout of bias, residual or out.
    """
    shape = (x.shape[0], width)
    out = torch.empty(shape, dtype=x.dtype, device=x.device) if out is None else out
    if bias is not None:
        require(bias.shape == (out_features,), "shape of bias", tuple(bias.shape), (out_features,))
        require(bias.dtype in FLOATS, "dtype of bias", bias.dtype, FLOATS)
        require(bias.is_contiguous(), "strides of bias", bias.stride(), (1,))
        require(bias.device == x.device, "device of bias", bias.device, x.device)
    for name, y in (("residual", residual), ("out", out)):
        if y is not None:
            require(y.shape == shape, f"shape of {name}", tuple(y.shape), shape)
            require(y.device == x.device, f"device of {name}", y.device, x.device)
            require(width <= 1 or y.stride(1) == 1, f"last stride of {name}", y.stride(1), 1)
    require(residual is None or residual.dtype in FLOATS, "dtype of residual", getattr(residual, "dtype", None), FLOATS)
    require(out.dtype in (x.dtype, torch.float32), "dtype of out", out.dtype, (x.dtype, torch.float32))
    return out
