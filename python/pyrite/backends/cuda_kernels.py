"""The kernels that the CUDA backend launches, each under the name by which the executor calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrite_kernels import (
    QuantizedWeight,
    embed,
    gate,
    glu,
    matmul,
    matmul_glu,
    paged_decode,
    qk_norm_rope_store,
    qmatmul,
    ragged_prefill,
    rms_norm,
    scale_softcap,
    select_candidates,
    store_kv,
)

if TYPE_CHECKING:
    import torch

__all__ = [
    "embed",
    "gate",
    "glu",
    "linear",
    "matmul",
    "matmul_glu",
    "paged_decode",
    "qk_norm_rope_store",
    "qmatmul",
    "ragged_prefill",
    "rms_norm",
    "scale_softcap",
    "select_candidates",
    "store_kv",
]


def linear(
    x: torch.Tensor,
    weight: torch.Tensor | QuantizedWeight,
    *,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor,
) -> None:
    """`out = x weight^T + bias + residual`, of floats or of integers."""
    if isinstance(weight, QuantizedWeight):
        qmatmul(x, weight, bias=bias, residual=residual, out=out)
    else:
        matmul(x, weight, bias=bias, residual=residual, out=out)
