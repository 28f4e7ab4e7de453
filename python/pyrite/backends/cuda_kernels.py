"""The table of kernels: which function runs each op of the CUDA backend. The only importer of `pyrite_kernels`.

An op moves from its plain torch form to its Triton kernel by one line here.
"""

from __future__ import annotations

from pyrite.backends import cuda_twins as twins

matmul = twins.matmul
matmul_glu = twins.matmul_glu
rms_norm = twins.rms_norm
glu = twins.glu
gate = twins.gate
embed = twins.embed
head_norm = twins.head_norm
rope = twins.rope
store_kv = twins.store_kv
qk_norm_rope_store = twins.qk_norm_rope_store
paged_decode = twins.paged_decode
ragged_prefill = twins.ragged_prefill
scale_and_cap = twins.scale_and_cap
