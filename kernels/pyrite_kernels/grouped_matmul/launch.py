"""Checks, grids and committed configurations of `grouped_matmul`, and `sort_by_expert`."""

from __future__ import annotations

from typing import Any

import torch
import triton

from pyrite_kernels.attention_launch import architecture, check_int32, dot_precision, require
from pyrite_kernels.grouped_matmul import kernel
from pyrite_kernels.matmul import launch as float_launch
from pyrite_kernels.matmul.launch import GROUP_M, MERGE_BLOCK, STREAM_ROWS, MatmulConfig, check_rows, choose_tile
from pyrite_kernels.qmatmul import launch as quantized_launch
from pyrite_kernels.quantized import QuantizedWeight
from pyrite_kernels.small_launch import padded

_tiled_kernel: Any = kernel.tiled_kernel
_split_kernel: Any = kernel.split_kernel
_merge_kernel: Any = kernel.merge_kernel
_sort_kernel: Any = kernel.sort_kernel

SPLIT_PROGRAMS = 512
"""Fewer tiles than this leave a device idle, and the spans of a tile then go to programs of their own."""

MAX_EXPERTS = 1024
"""Most experts: a program holds all group sizes in registers."""

SORT_BLOCK = 1024


def padded_experts(experts: int) -> int:
    """How many group sizes a program holds."""
    return max(16, padded(experts))


def max_tiles(rows: int, experts: int, block_m: int) -> int:
    """The most tiles of block_m rows, each of one expert, that any division of the rows has."""
    touched = min(rows, experts)
    return touched + (rows - touched) // block_m


def choose_config(
    arch: str, itemsize: int, bits: int, rows: int, experts: int, out_features: int, one_span: bool
) -> MatmulConfig:
    """The committed configuration, by the mean rows of an expert; a choice that changes no bit of a result.

    Args:
        bits: of a quantized weight, 0 for a float one.
    """
    mean = triton.cdiv(rows, experts)
    if mean <= STREAM_ROWS:
        if bits:
            return quantized_launch.stream_config(arch, itemsize, bits, mean)
        return float_launch.stream_config(arch, itemsize, mean)
    if bits:
        return choose_tile(quantized_launch.tile_configs(arch, itemsize, bits, one_span), rows, out_features)
    return choose_tile(float_launch.tile_configs(arch, itemsize, one_span, False), rows, out_features)


def grouped_matmul(
    x: torch.Tensor,
    weight: torch.Tensor | QuantizedWeight,
    group_sizes: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply rows, sorted by expert, by the weight of their expert: out[i] = weight[expert of i] x[i].

    The first group_sizes[0] rows are those of expert 0, the next those of expert 1. Only experts with rows are read.
    The sums are those of `matmul` and `qmatmul`: a row has the bits that those give it alone with its expert's weight,
    whatever the other rows, the group sizes and the number of rows. Sizes are read on the device alone, so the call
    never waits for it and can be captured in a CUDA graph.

    Args:
        x: [rows, in_features] f32 | f16 | bf16, last dim contiguous.
        weight: [experts, out_features, in_features], dtype of x, last dim contiguous, or a `QuantizedWeight` of that
            shape; at most 1024 experts.
        group_sizes: [experts] i32, each >= 0, their sum at most the number of rows. Rows beyond the sum are neither
            read nor written; sizes beyond the rows are cut.
        out: [rows, out_features], dtype of x or f32, last dim contiguous, not over x; dtype of x when made here.
    Returns:
        `out`, whose rows beyond the sum of group_sizes are as they were; sums in f32, rounded once.
    Raises:
        ValueError: a shape, dtype, device or layout breaks the above.
    """
    out = _checked(x, weight, group_sizes, out)
    rows, out_features = out.shape
    if rows == 0 or out_features == 0:
        return out
    experts, _, in_features = weight.shape
    arch = architecture(x.device)
    quantized = not isinstance(weight, torch.Tensor)
    bits, group = (weight.bits, weight.group_size) if quantized else (0, 0)
    span = float_launch.span_length(out_features, in_features)
    one_span = span >= in_features
    config = choose_config(arch, x.element_size(), bits, rows, experts, out_features, one_span)
    tiles_n = triton.cdiv(out_features, config.block_n)
    tiles_m = max_tiles(rows, experts, config.block_m)
    common: dict[str, Any] = {
        "BITS": bits,
        "GROUP": group,
        "BLOCK_N": config.block_n,
        "BLOCK_M": config.block_m,
        "BLOCK_K": config.block_k,
        "BLOCK_E": padded_experts(experts),
        "EVEN_K": in_features % config.block_k == 0,
        "PRECISION": dot_precision(arch),
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "enable_fp_fusion": False,
    }
    sizes = (rows, out_features, in_features, experts)
    strides = (x.stride(0), *_weight_strides(weight))
    operands = (weight.words, weight.params) if quantized else (weight, weight)
    if not one_span and triton.cdiv(rows, experts) <= STREAM_ROWS and tiles_m * tiles_n < SPLIT_PROGRAMS:
        spans = triton.cdiv(in_features, span)
        part = float_launch.scratch(spans, rows, out_features, x.device)
        _split_kernel[(tiles_n, spans, tiles_m)](x, *operands, group_sizes, part, *sizes, *strides, span, **common)
        return _merge(part, group_sizes, out)
    _tiled_kernel[(tiles_m * tiles_n,)](
        x,
        *operands,
        group_sizes,
        out,
        *sizes,
        *strides,
        out.stride(0),
        span,
        GROUP_M=GROUP_M,
        ONE_SPAN=one_span,
        **common,
    )
    return out


def sort_by_expert(expert_ids: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sort (token, expert) pairs by expert, stably, without waiting for the device.

    One program for each expert counts the pairs of lower experts, then places its own in their order. That is one
    launch with one result and no atomics, where `torch.sort` takes several, and `torch.bincount` reads its largest
    number on the host, which a CUDA graph forbids. The pairs are read once or twice by each expert, out of L2.

    Args:
        expert_ids: [num_tokens, num_experts_per_tok] or [num_pairs] i32 | i64, the expert of each pair. An id outside
            0..num_experts - 1, such as -1 for a padded token, is no expert: its pair goes behind all others.
        num_experts: 1 to 1024.
    Returns:
        (order, inverse, group_sizes), all i32. order [num_pairs]: pairs, sorted, so that row i of `grouped_matmul` is
        that of token order[i] // num_experts_per_tok. inverse [num_pairs]: where each pair went, for
        result[inverse].view(num_tokens, num_experts_per_tok, -1). group_sizes [num_experts].
    Raises:
        ValueError: a shape, dtype, layout or number breaks the above.
    """
    require(expert_ids.ndim in (1, 2), "shape of expert_ids", tuple(expert_ids.shape), "one or two dimensions")
    kinds = (torch.int32, torch.int64)
    require(expert_ids.dtype in kinds, "dtype of expert_ids", expert_ids.dtype, kinds)
    require(expert_ids.is_contiguous() or expert_ids.ndim == 1, "strides of expert_ids", expert_ids.stride(), "packed")
    require(1 <= num_experts <= MAX_EXPERTS, "num_experts", num_experts, f"1 to {MAX_EXPERTS}")
    pairs = expert_ids.numel()
    order, inverse = torch.empty((2, pairs), dtype=torch.int32, device=expert_ids.device).unbind(0)
    sizes = torch.empty(num_experts, dtype=torch.int32, device=expert_ids.device)
    _sort_kernel[(num_experts + 1,)](
        expert_ids,
        order,
        inverse,
        sizes,
        pairs,
        num_experts,
        expert_ids.stride(0) if expert_ids.ndim == 1 else 1,
        BLOCK=SORT_BLOCK,
        num_warps=4,
        num_stages=1,
        enable_fp_fusion=False,
    )
    return order, inverse, sizes


def _merge(part: torch.Tensor, group_sizes: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Add the spans of the rows that have an expert."""
    rows, width = out.shape
    experts = group_sizes.shape[0]
    _merge_kernel[(rows, triton.cdiv(width, MERGE_BLOCK))](
        part,
        group_sizes,
        out,
        rows,
        width,
        experts,
        out.stride(0),
        part.shape[0],
        BLOCK=MERGE_BLOCK,
        BLOCK_E=padded_experts(experts),
        num_warps=4,
        num_stages=1,
        enable_fp_fusion=False,
    )
    return out


def _weight_strides(weight: torch.Tensor | QuantizedWeight) -> tuple[int, int, int, int]:
    """(stride_we, stride_w, stride_pe, stride_p) as the kernels name them."""
    if isinstance(weight, torch.Tensor):
        return weight.stride(0), weight.stride(1), 0, 0
    words, params = weight.words, weight.params
    return words.stride(0), words.shape[2], params.stride(0), params.shape[2]


def _checked(
    x: torch.Tensor,
    weight: torch.Tensor | QuantizedWeight,
    group_sizes: torch.Tensor,
    out: torch.Tensor | None,
) -> torch.Tensor:
    """Check everything; the `out` to write."""
    shape = tuple(weight.shape)
    fits = len(shape) == 3 and 1 <= shape[0] <= MAX_EXPERTS
    require(fits, "shape of weight", shape, f"[experts, out_features, in_features], 1 to {MAX_EXPERTS} experts")
    require(weight.device == x.device, "device of weight", weight.device, x.device)
    check_rows(x, shape[2])
    if isinstance(weight, torch.Tensor):
        require(weight.dtype == x.dtype, "dtype of weight", weight.dtype, x.dtype)
        require(shape[2] == 1 or weight.stride(2) == 1, "last stride of weight", weight.stride(2), 1)
    else:
        require(weight.params[0].numel() < 2**31, "groups of an expert", weight.params[0].numel(), "below 2**31")
    check_int32("group_sizes", group_sizes, (shape[0],), x.device)
    return float_launch.check_epilogue(x, shape[1], shape[1], None, None, out)
