"""The plain twins of `quantize_rows_int8` and `quantize_rows_fp8`."""

from __future__ import annotations

import torch

from pyrite_kernels.rms_norm.reference import fp8_codes, int8_codes


def quantize_rows_int8(
    x: torch.Tensor, *, out: torch.Tensor | None = None, scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what `pyrite_kernels.quantize_rows_int8` does."""
    return int8_codes(x.float(), out, scale)


def quantize_rows_fp8(
    x: torch.Tensor,
    *,
    group_size: int | None = None,
    out: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what `pyrite_kernels.quantize_rows_fp8` does."""
    return fp8_codes(x.float(), group_size, out, scale)
