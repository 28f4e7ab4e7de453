"""The kernels that the CUDA backend launches, each under the name by which the executor calls it."""

from __future__ import annotations

from pyrite_kernels import (
    embed,
    gate,
    glu,
    matmul,
    matmul_glu,
    paged_decode,
    qk_norm_rope_store,
    ragged_prefill,
    rms_norm,
    scale_softcap,
    store_kv,
)

__all__ = [
    "embed",
    "gate",
    "glu",
    "matmul",
    "matmul_glu",
    "paged_decode",
    "qk_norm_rope_store",
    "ragged_prefill",
    "rms_norm",
    "scale_softcap",
    "store_kv",
]
