"""The plain twins of `rms_norm` and of its forms that quantize."""

from __future__ import annotations

import torch


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    *,
    eps: float,
    residual: torch.Tensor | None = None,
    weight_offset: float = 0.0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Do what `pyrite_kernels.rms_norm` does."""
    y = _normed(x, weight, eps, residual, weight_offset)
    return y.to(x.dtype) if out is None else out.copy_(y)


def rms_norm_int8(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    *,
    eps: float,
    residual: torch.Tensor | None = None,
    weight_offset: float = 0.0,
    out: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what `pyrite_kernels.rms_norm_int8` does."""
    return int8_codes(_normed(x, weight, eps, residual, weight_offset), out, scale)


def rms_norm_fp8(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    *,
    eps: float,
    residual: torch.Tensor | None = None,
    weight_offset: float = 0.0,
    group_size: int | None = None,
    out: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what `pyrite_kernels.rms_norm_fp8` does."""
    return fp8_codes(_normed(x, weight, eps, residual, weight_offset), group_size, out, scale)


def int8_codes(
    y: torch.Tensor, out: torch.Tensor | None, scale: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows y f32 as 8-bit integers and a scale per row."""
    scaled, found = _scaled(y, 127.0)
    codes = scaled.nan_to_num(0.0).round().clamp(-127, 127).to(torch.int8)
    return codes if out is None else out.copy_(codes), found if scale is None else scale.copy_(found)


def fp8_codes(
    y: torch.Tensor, group_size: int | None, out: torch.Tensor | None, scale: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows y f32 as e4m3 and a scale per row or per group."""
    scaled, found = _scaled(y if group_size is None else y.unflatten(1, (-1, group_size)), 448.0)
    codes = scaled.clamp(-448, 448).reshape(y.shape).to(torch.float8_e4m3fn)
    return codes if out is None else out.copy_(codes), found if scale is None else scale.copy_(found)


def _normed(
    x: torch.Tensor, weight: torch.Tensor | None, eps: float, residual: torch.Tensor | None, weight_offset: float
) -> torch.Tensor:
    """The norm in f32; the residual is updated."""
    y = x.float()
    if residual is not None:
        y = residual.copy_(residual.float() + y).float()
    y = y / torch.sqrt(torch.mean(y * y, dim=-1, keepdim=True) + eps)
    return y if weight is None else y * (weight.float() + weight_offset)


def _scaled(y: torch.Tensor, limit: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(y in units of its scale, the scale), for each row of the last dimension."""
    top = y.abs().amax(dim=-1)
    tiny = top < 1e-30
    inverse = torch.where(tiny, 0.0, torch.full_like(top, limit) / top)  # a number over a tensor is two roundings
    return y * inverse[..., None], torch.where(tiny, 0.0, top / limit)
