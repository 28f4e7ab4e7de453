"""The table of kernels: which function runs each op of the CUDA backend.

An op moves from its plain torch form to its Triton kernel by one line here.
"""

from __future__ import annotations

from pyrite_kernels import paged_decode, ragged_prefill, store_kv

from pyrite.backends import cuda_twins as twins

__all__ = [
    "embed",
    "gate",
    "glu",
    "head_norm",
    "matmul",
    "matmul_glu",
    "paged_decode",
    "qk_norm_rope_store",
    "ragged_prefill",
    "rms_norm",
    "rope",
    "scale_and_cap",
    "store_kv",
]

matmul = twins.matmul
matmul_glu = twins.matmul_glu
rms_norm = twins.rms_norm
glu = twins.glu
gate = twins.gate
embed = twins.embed
head_norm = twins.head_norm
rope = twins.rope
qk_norm_rope_store = twins.qk_norm_rope_store
scale_and_cap = twins.scale_and_cap
