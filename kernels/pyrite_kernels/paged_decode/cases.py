"""Shapes and dtypes of paged decode, for tests, benchmarks and ahead-of-time compilation."""

from __future__ import annotations

import torch

from pyrite_kernels.aot import AotCase
from pyrite_kernels.attention_launch import FP8, SPLIT_KEYS, padded_head_dim
from pyrite_kernels.paged_decode.kernel import decode_merge_kernel, decode_split_kernel
from pyrite_kernels.paged_decode.launch import config
from pyrite_kernels.ragged_prefill.cases import (
    AOT_SHAPES,
    AttentionCase,
    aot_aligned,
    aot_kind,
    aot_signature,
    attention_cases,
)
from pyrite_kernels.ragged_prefill.cases import CASES as PREFILL_CASES

CASES = (
    *(case.one_token() for case in PREFILL_CASES),
    AttentionCase("many_heads", ((70, 1),), num_heads=35, num_kv_heads=1, head_dim=16),
)
"""The batches of prefill with one new token each, and more query heads per KV head than a program has rows."""

BF16 = torch.bfloat16
BENCH_CASES = (
    AttentionCase("b1_s8192_gqa4", ((8192, 1),), 32, 8, 128, 32, BF16),
    AttentionCase("b16_s8192_gqa4", ((8192, 1),) * 16, 32, 8, 128, 32, BF16),
    AttentionCase("b64_s4096_gqa4", ((4096, 1),) * 64, 32, 8, 128, 32, BF16),
    AttentionCase("b32_s4096_mha", ((4096, 1),) * 32, 32, 32, 128, 32, BF16),
    AttentionCase("b16_s8192_gqa4_fp8", ((8192, 1),) * 16, 32, 8, 128, 32, BF16, FP8),
    AttentionCase("b16_s8192_gqa4_window", ((8192, 1),) * 16, 32, 8, 128, 32, BF16, window=1024),
)
"""Sizes of real models, for a GPU; several read more than 256 MB of keys and values."""


def aot_cases(arch: str) -> list[AotCase]:
    """What is compiled ahead of time for a target of `aot.ARCHS`."""
    cases = list(attention_cases(decode_split_kernel, arch, config, sinks=False))
    for shape in AOT_SHAPES:
        block_d = padded_head_dim(shape.head_dim)
        constexprs = {
            "GROUP": shape.group,
            "HEAD_DIM": shape.head_dim,
            "BLOCK_D": block_d,
            "SPLIT": SPLIT_KEYS,
            "KV": aot_kind(shape, arch),
            "HAS_WINDOW": shape.window,
            "HAS_SINKS": shape.sinks,
        }
        signature = aot_signature(decode_merge_kernel, shape, constexprs)
        cases.append(
            AotCase(
                name=f"merge_{shape.name}",
                kernel=decode_merge_kernel,
                signature=signature,
                constexprs=constexprs,
                num_warps=1 if block_d <= 128 else 2,
                num_stages=1,
                aligned=aot_aligned(signature),
            )
        )
    return cases
