"""Shapes and dtypes of `store_kv`, for tests and ahead-of-time compilation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pyrite_kernels.aot import AotCase
from pyrite_kernels.attention_launch import FP8, padded_head_dim
from pyrite_kernels.store_kv.kernel import store_kv_kernel
from pyrite_kernels.store_kv.launch import tokens_per_program


@dataclass(frozen=True)
class StoreCase:
    """Tokens to store and the cache they go to."""

    name: str
    num_tokens: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype
    cache_dtype: torch.dtype


CASES = tuple(
    StoreCase(f"t{tokens}_{heads}x{dim}_{str(cache)[6:]}", tokens, heads, dim, size, dtype, cache)
    for tokens, heads, dim, size, dtype, cache in (
        (1, 1, 64, 16, torch.float32, torch.float32),
        (63, 2, 80, 32, torch.float16, torch.float16),
        (5, 3, 24, 1, torch.float16, torch.float16),
        (40, 2, 96, 16, torch.float32, FP8),
        (17, 2, 64, 16, torch.float16, FP8),
        (40, 2, 256, 16, torch.float32, torch.int8),
        (17, 1, 64, 128, torch.float16, torch.int8),
    )
)
"""Small batches that reach every kind of cache; all run in the interpreter."""

TYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int8: "i8", FP8: "u8"}
"""Triton's spelling of the dtypes that the kernel sees."""


def aot_cases(arch: str) -> list[AotCase]:
    """What is compiled ahead of time for a target of `aot.ARCHS`; the same for all of them."""
    cases = []
    for head_dim, dtype, cache in (
        (128, torch.bfloat16, torch.bfloat16),
        (80, torch.float16, torch.float16),
        (64, torch.float32, torch.float32),
        (128, torch.bfloat16, FP8),
        (128, torch.bfloat16, torch.int8),
    ):
        block_d = padded_head_dim(head_dim)
        kind = {torch.int8: "int8", FP8: "fp8"}.get(cache, "float")
        constexprs = {
            "HEAD_DIM": head_dim,
            "BLOCK_D": block_d,
            "BLOCK_SIZE": 32,
            "BLOCK_T": tokens_per_program(block_d),
            "KV": kind,
        }
        types = {"slot_ptr": "*i32", "k_scale_ptr": "*fp32", "v_scale_ptr": "*fp32", "num_tokens": "i32"}
        types |= dict.fromkeys(("k_ptr", "v_ptr"), "*" + TYPE_NAMES[dtype])
        types |= dict.fromkeys(("k_cache_ptr", "v_cache_ptr"), "*" + TYPE_NAMES[cache])
        types |= dict.fromkeys(constexprs, "constexpr")
        signature = {name: types.get(name, "i32") for name in store_kv_kernel.arg_names}
        aligned = tuple(n for n, t in signature.items() if t.startswith("*") or n.startswith("stride_"))
        name = f"{TYPE_NAMES[dtype]}_to_{TYPE_NAMES[cache]}_d{head_dim}"
        cases.append(AotCase(name, store_kv_kernel, signature, constexprs, num_warps=4, num_stages=1, aligned=aligned))
    return cases
