"""What the launches of `int8_matmul` and `fp8_matmul` share: checks of 8-bit rows, weights, and what comes after."""

from __future__ import annotations

import torch

from pyrite_kernels.attention_launch import FLOATS, require
from pyrite_kernels.testing import interpreted


def check_operands(x_q: torch.Tensor, weight_q: torch.Tensor, dtype: torch.dtype) -> None:
    """Check rows x_q [rows, in_features] and weight_q [out_features, in_features] of an 8-bit dtype.

    Raises:
        ValueError: wrong dtype, shape, device or layout.
    """
    require(weight_q.ndim == 2, "shape of weight_q", tuple(weight_q.shape), "[out_features, in_features]")
    in_features = weight_q.shape[1]
    fits = x_q.ndim == 2 and x_q.shape[1] == in_features and in_features > 0
    require(fits, "shape of x_q", tuple(x_q.shape), f"[rows, {in_features}], at least one input")
    for name, x in (("x_q", x_q), ("weight_q", weight_q)):
        require(x.dtype == dtype, f"dtype of {name}", x.dtype, dtype)
        require(in_features == 1 or x.stride(1) == 1, f"last stride of {name}", x.stride(1), 1)
    require(weight_q.device == x_q.device, "device of weight_q", weight_q.device, x_q.device)


def check_scale(name: str, scale: torch.Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """Check scales f32, contiguous in their last dimension.

    Raises:
        ValueError: wrong dtype, shape, device or layout.
    """
    require(scale.dtype == torch.float32, f"dtype of {name}", scale.dtype, torch.float32)
    require(tuple(scale.shape) == shape, f"shape of {name}", tuple(scale.shape), shape)
    require(shape[-1] <= 1 or scale.stride(-1) == 1, f"last stride of {name}", scale.stride(-1), 1)
    require(scale.device == device, f"device of {name}", scale.device, device)


def check_after(
    shape: tuple[int, int],
    device: torch.device,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor | None,
    out_dtype: torch.dtype | None,
) -> torch.Tensor:
    """Check bias [out_features], residual and out of `shape` [rows, out_features]; `out`, made when None.

    Raises:
        ValueError: a shape, dtype, device or layout, or neither `out` nor `out_dtype`.
    """
    require(out is not None or out_dtype is not None, "out_dtype", None, "a dtype where out is not given")
    dtype = out_dtype if out is None else out.dtype
    require(dtype in FLOATS, "dtype of out", dtype, FLOATS)
    require(out_dtype in (None, dtype), "out_dtype", out_dtype, f"the dtype of out, {dtype}")
    bad = interpreted() and dtype == torch.bfloat16
    require(not bad, "dtype of out", dtype, "float16 or float32 in Triton's interpreter")
    out = torch.empty(shape, dtype=dtype, device=device) if out is None else out
    if bias is not None:
        require(bias.shape == shape[1:], "shape of bias", tuple(bias.shape), shape[1:])
        require(bias.dtype in FLOATS, "dtype of bias", bias.dtype, FLOATS)
        require(bias.is_contiguous(), "strides of bias", bias.stride(), (1,))
        require(bias.device == device, "device of bias", bias.device, device)
    for name, y in (("residual", residual), ("out", out)):
        if y is not None:
            require(y.shape == shape, f"shape of {name}", tuple(y.shape), shape)
            require(y.dtype in FLOATS, f"dtype of {name}", y.dtype, FLOATS)
            require(y.device == device, f"device of {name}", y.device, device)
            require(shape[1] <= 1 or y.stride(1) == 1, f"last stride of {name}", y.stride(1), 1)
    return out
