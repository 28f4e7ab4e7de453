"""What the launches of the small ops share: checks of rows, tile shapes, grid sizes, ahead-of-time signatures."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch

from pyrite_kernels.aot import AotCase
from pyrite_kernels.attention_launch import FLOATS, architecture, require

MAX_WIDTH = 16384
"""Widest row that a program holds in registers."""

TYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
"""Triton's spelling of the dtypes of rows."""


def padded(size: int) -> int:
    """The least power of two that is not below `size`."""
    return 1 << max(size - 1, 0).bit_length()


def check_rows(name: str, x: torch.Tensor, like: torch.Tensor | None = None) -> None:
    """Check a matrix of float rows, and that it has the shape and device of `like`.

    Raises:
        ValueError: wrong dtype, rank, shape, device or layout.
    """
    require(x.dtype in FLOATS, f"dtype of {name}", x.dtype, FLOATS)
    require(x.ndim == 2, f"shape of {name}", tuple(x.shape), "[rows, width]")
    require(x.shape[1] <= 1 or x.stride(1) == 1, f"last stride of {name}", x.stride(1), 1)
    if like is not None:
        require(x.shape == like.shape, f"shape of {name}", tuple(x.shape), tuple(like.shape))
        require(x.device == like.device, f"device of {name}", x.device, like.device)


def check_vector(name: str, x: torch.Tensor, size: int, device: torch.device) -> None:
    """Check a contiguous float vector.

    Raises:
        ValueError: wrong dtype, shape, device or layout.
    """
    require(x.dtype in FLOATS, f"dtype of {name}", x.dtype, FLOATS)
    require(x.shape == (size,), f"shape of {name}", tuple(x.shape), (size,))
    require(x.is_contiguous(), f"strides of {name}", x.stride(), (1,))
    require(x.device == device, f"device of {name}", x.device, device)


def check_output(name: str, x: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Check a given output whose dtype is fixed; its last dimension must be contiguous.

    Raises:
        ValueError: wrong dtype, shape, device or layout.
    """
    require(x.dtype == dtype, f"dtype of {name}", x.dtype, dtype)
    require(tuple(x.shape) == shape, f"shape of {name}", tuple(x.shape), shape)
    require(shape[-1] <= 1 or x.stride(-1) == 1, f"last stride of {name}", x.stride(-1), 1)
    require(x.device == device, f"device of {name}", x.device, device)


def wave_factor(arch: str) -> int:
    """How many 32-lane warps the lanes of one warp of this part are worth."""
    return 2 if arch.startswith("gfx") else 1


def elementwise_tile(width: int) -> tuple[int, int]:
    """(rows, columns) of a program of 2048 elements; rows wider than that are cut."""
    columns = min(max(padded(width), 16), 2048)
    return 2048 // columns, columns


def elementwise_warps(arch: str) -> int:
    """Warps of such a program: 16 elements for each thread."""
    return 4 // wave_factor(arch)


def persistent_programs(device: torch.device, num_warps: int, num_tiles: int) -> int:
    """Programs that stay on the device and walk over the tiles: 1024 lanes for each processor.

    The interpreter has 3, so that its tests walk too.
    """
    each = 1 if device.type == "cpu" else max(1, 32 // (num_warps * wave_factor(architecture(device))))
    return min(num_tiles, processors(device) * each)


def processors(device: torch.device) -> int:
    """Multiprocessors of a device; 3 in the interpreter."""
    return 3 if device.type == "cpu" else _gpu_processors(device.index or 0)


@functools.cache
def _gpu_processors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def aot_case(
    name: str,
    kernel: Any,
    types: Mapping[str, str],
    constexprs: Mapping[str, Any],
    *,
    num_warps: int,
    unaligned: tuple[str, ...] = (),
    expect: tuple[str, ...] = (),
) -> AotCase:
    """A case whose parameters are i32 unless `types` or `constexprs` names them.

    Args:
        types: Triton's types of pointers and floats.
        unaligned: pointers and strides that are not divisible by 16; all others are.
    """
    known = {**types, **dict.fromkeys(constexprs, "constexpr")}
    signature = {parameter: known.get(parameter, "i32") for parameter in kernel.arg_names}
    aligned = tuple(
        n for n, t in signature.items() if (t.startswith("*") or n.startswith("stride_")) and n not in unaligned
    )
    return AotCase(name, kernel, signature, constexprs, num_warps, 1, aligned, expect)


def wide_loads(arch: str) -> tuple[str, ...]:
    """Pattern of a 16-byte load from global memory in the assembly of a target."""
    return (r"(global|buffer)_load_dwordx4",) if arch.startswith("gfx") else (r"ld\.global[\w:.]*\.v4\.b32",)


def wide_stores(arch: str) -> tuple[str, ...]:
    """Pattern of a 16-byte store to global memory in the assembly of a target."""
    return (r"(global|buffer)_store_dwordx4",) if arch.startswith("gfx") else (r"st\.global[\w:.]*\.v4\.b32",)
