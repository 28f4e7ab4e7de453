"""Shapes and dtypes of `qk_norm_rope_store`, for tests, benchmarks and ahead-of-time compilation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pyrite_kernels.aot import AotCase
from pyrite_kernels.attention_launch import FP8
from pyrite_kernels.qk_norm_rope_store.kernel import qk_norm_rope_store_kernel
from pyrite_kernels.qk_norm_rope_store.launch import head_sizes
from pyrite_kernels.small_launch import TYPE_NAMES, aot_case, wide_loads, wide_stores


@dataclass(frozen=True)
class QkCase:
    """Tokens with their heads, and what is done to them.

    Args:
        norm: "weight", "centred" (1 + weight), "scaleless" or "none".
        half: pairs that are rotated, 0 for no rotation.
        cache_dtype: of keys and values, None for that of the heads.
    """

    name: str
    num_tokens: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    norm: str = "weight"
    half: int = 0
    q_factor: float = 1.0
    rope_scale: float = 1.0
    block_size: int = 16
    cache_dtype: torch.dtype | None = None


F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16

CASES = (
    QkCase("t1_h1_1_d64_rope", 1, 1, 1, 64, F32, "none", 32),
    QkCase("t5_h14_2_d64_weight_f16", 5, 14, 2, 64, F16, "weight", 32, block_size=32),
    QkCase("t7_h21_3_d24_centred", 7, 21, 3, 24, F32, "centred", 12, block_size=1),
    QkCase("t3_h4_4_d80_partial", 3, 4, 4, 80, F32, "weight", 16),
    QkCase("t4_h8_2_d128_scaleless_no_rope", 4, 8, 2, 128, F32, "scaleless", 0, q_factor=2.5),
    QkCase("t4_h8_1_d256_yarn_f16", 4, 8, 1, 256, F16, "centred", 128, q_factor=0.5, rope_scale=1.3),
    QkCase("t6_h3_3_d25_odd", 6, 3, 3, 25, F32, "none", 0),
    QkCase("t9_h32_8_d128_int8", 9, 32, 8, 128, F16, "weight", 64, cache_dtype=torch.int8),
    QkCase("t9_h4_2_d96_fp8", 9, 4, 2, 96, F32, "weight", 48, cache_dtype=FP8),
)
"""Small batches that reach every branch; all run in the interpreter."""

BENCH_CASES = tuple(
    QkCase(f"t{tokens}_h{heads}_{kv_heads}_d128", tokens, heads, kv_heads, 128, BF16, "weight", 64, block_size=32)
    for tokens in (1, 64, 8192)
    for heads, kv_heads in ((32, 8), (40, 8))
)
"""Sizes of real models: decode, a large batch, and a prefill of 64 MB and more."""


def aot_cases(arch: str) -> list[AotCase]:
    """What is compiled ahead of time for a target of `aot.ARCHS`."""
    shapes = (
        QkCase("bf16_h32_8_d128", 1, 32, 8, 128, BF16, "weight", 64, block_size=32),
        QkCase("bf16_h14_2_d64_no_norm", 1, 14, 2, 64, BF16, "none", 32, block_size=32),
        QkCase("bf16_h16_8_d256_scaleless_no_rope", 1, 16, 8, 256, BF16, "scaleless", 0, block_size=32),
        QkCase("f32_h16_8_d128", 1, 16, 8, 128, F32, "weight", 64),
        QkCase("f16_h32_32_d80_partial", 1, 32, 32, 80, F16, "weight", 16),
        QkCase("bf16_h32_8_d128_fp8", 1, 32, 8, 128, BF16, "weight", 64, cache_dtype=FP8),
        QkCase("bf16_h32_8_d128_int8", 1, 32, 8, 128, BF16, "centred", 64, cache_dtype=torch.int8),
    )
    return [_aot(arch, case) for case in shapes]


def _aot(arch: str, case: QkCase) -> AotCase:
    half = case.half or case.head_dim // 2
    blocks, num_warps = head_sizes(arch, case.num_heads, case.num_kv_heads, case.head_dim, half)
    norm, weight = case.norm != "none", case.norm in ("weight", "centred")
    constexprs = {
        "NUM_HEADS": case.num_heads,
        "NUM_KV_HEADS": case.num_kv_heads,
        "HEAD_DIM": case.head_dim,
        **blocks,
        "BLOCK_SIZE": case.block_size,
        **dict.fromkeys(("Q_NORM", "K_NORM"), norm),
        **dict.fromkeys(("HAS_Q_WEIGHT", "HAS_K_WEIGHT"), weight),
        "ROPE": case.half > 0,
        "KV": {torch.int8: "int8", FP8: "fp8"}.get(case.cache_dtype or case.dtype, "float"),
    }
    row = "*" + TYPE_NAMES[case.dtype]
    cache = {torch.int8: "*i8", FP8: "*u8"}.get(case.cache_dtype or case.dtype, row)
    types = {
        **dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_ptr"), row),
        **dict.fromkeys(("k_cache_ptr", "v_cache_ptr"), cache),
        **dict.fromkeys(("position_ptr", "slot_ptr"), "*i32"),
        **dict.fromkeys(("q_weight_ptr", "k_weight_ptr", "inv_freq_ptr", "k_scale_ptr", "v_scale_ptr"), "*fp32"),
        **dict.fromkeys(("q_eps", "k_eps", "weight_offset", "q_factor", "k_factor", "rope_scale"), "fp32"),
    }
    expect = wide_loads(arch) + wide_stores(arch) if case.head_dim % 64 == 0 else ()
    return aot_case(case.name, qk_norm_rope_store_kernel, types, constexprs, num_warps=num_warps, expect=expect)
