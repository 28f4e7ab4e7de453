"""Shapes and dtypes of `embed`, for tests, benchmarks and ahead-of-time compilation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pyrite_kernels.aot import AotCase
from pyrite_kernels.embed.kernel import embed_kernel, embed_quantized_kernel
from pyrite_kernels.small_launch import (
    TYPE_NAMES,
    aot_case,
    elementwise_tile,
    elementwise_warps,
    wide_loads,
    wide_stores,
)


@dataclass(frozen=True)
class EmbedCase:
    """Ids to look up in a table."""

    name: str
    num_rows: int
    vocab_size: int
    width: int
    dtype: torch.dtype


CASES = (
    EmbedCase("r1_w64_f32", 1, 10, 64, torch.float32),
    EmbedCase("r37_w60_f16", 37, 5, 60, torch.float16),
    EmbedCase("r3_w2049_f32", 3, 7, 2049, torch.float32),
    EmbedCase("r2_w4096_bf16", 2, 3, 4096, torch.bfloat16),
)
"""Small batches that reach every branch; all run in the interpreter."""


@dataclass(frozen=True)
class QuantizedEmbedCase:
    """Ids to look up in a table of integers."""

    name: str
    num_rows: int
    vocab_size: int
    width: int
    bits: int
    group_size: int
    symmetric: bool


QUANTIZED_CASES = (
    QuantizedEmbedCase("r1_w64_int8_g32", 1, 10, 64, 8, 32, True),
    QuantizedEmbedCase("r37_w96_int8_g32_asym", 37, 130, 96, 8, 32, False),
    QuantizedEmbedCase("r5_w2112_int4_g64", 5, 70, 2112, 4, 64, True),
    QuantizedEmbedCase("r19_w128_int4_g128_asym", 19, 65, 128, 4, 128, False),
)
"""Tables of more than one tile of rows, tiles that are not full, and a row that is cut; all run in the interpreter."""

BENCH_CASES = tuple(EmbedCase(f"r{rows}_w4096", rows, 128256, 4096, torch.bfloat16) for rows in (1, 64, 8192))
"""Sizes of real models: decode, a large batch, and a prefill of 64 MB."""

QUANTIZED_BENCH_CASES = tuple(
    QuantizedEmbedCase(f"r{rows}_w4096_int8", rows, 128256, 4096, 8, 64, True) for rows in (1, 64, 8192)
)
"""The same in 8 bits: an embedding tied to its head."""


def aot_cases(arch: str) -> list[AotCase]:
    """What is compiled ahead of time for a target of `aot.ARCHS`."""
    cases = []
    for weight, out, width in (
        (torch.bfloat16, torch.bfloat16, 4096),
        (torch.float16, torch.float32, 128),
        (torch.float32, torch.float32, 2048),
    ):
        block_r, block_w = elementwise_tile(width)
        types = {"ids_ptr": "*i32", "weight_ptr": "*" + TYPE_NAMES[weight], "out_ptr": "*" + TYPE_NAMES[out]}
        constexprs = {"WIDTH": width, "BLOCK_R": block_r, "BLOCK_W": block_w}
        name = f"{TYPE_NAMES[weight]}_to_{TYPE_NAMES[out]}_w{width}"
        expect = wide_loads(arch) + wide_stores(arch)
        cases.append(aot_case(name, embed_kernel, types, constexprs, num_warps=elementwise_warps(arch), expect=expect))
    block_r, block_w = elementwise_tile(4096)
    for bits, group, out in ((8, 64, torch.bfloat16), (4, 128, torch.float16), (8, 32, torch.float32)):
        types = {"ids_ptr": "*i32", "words_ptr": "*i32", "params_ptr": "*i32", "out_ptr": "*" + TYPE_NAMES[out]}
        constexprs = {"WIDTH": 4096, "BITS": bits, "GROUP": group, "BLOCK_R": block_r, "BLOCK_W": block_w}
        warps, expect = elementwise_warps(arch), wide_stores(arch)
        name = f"int{bits}_g{group}_to_{TYPE_NAMES[out]}"
        cases.append(aot_case(name, embed_quantized_kernel, types, constexprs, num_warps=warps, expect=expect))
    return cases
