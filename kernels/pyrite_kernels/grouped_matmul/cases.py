"""Shapes, dtypes and divisions of `grouped_matmul`, for tests, benchmarks and ahead-of-time compilation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pyrite_kernels.aot import AotCase
from pyrite_kernels.attention_launch import dot_precision
from pyrite_kernels.grouped_matmul.kernel import merge_kernel, sort_kernel, split_kernel, tiled_kernel
from pyrite_kernels.grouped_matmul.launch import SORT_BLOCK, padded_experts
from pyrite_kernels.matmul import launch as float_launch
from pyrite_kernels.matmul.cases import BF16, F16, TYPE_NAMES, aot_case, expected
from pyrite_kernels.matmul.launch import GROUP_M, MERGE_BLOCK, MatmulConfig
from pyrite_kernels.qmatmul import launch as quantized_launch
from pyrite_kernels.qmatmul.cases import expected_quantized
from pyrite_kernels.quantized import QuantizedWeight
from pyrite_kernels.testing import device


@dataclass(frozen=True)
class GroupedCase:
    """One grouped product.

    Args:
        name: for test ids.
        sizes: rows of each expert.
        out_features, in_features: of an expert's weight.
        dtype: of x, and of a float weight.
        bits: 4 or 8, or 0 for a float weight; group_size and symmetric are of a quantized one.
        tail: rows that belong to no expert.
    """

    name: str
    sizes: tuple[int, ...]
    out_features: int
    in_features: int
    dtype: torch.dtype = torch.float32
    bits: int = 0
    group_size: int = 64
    symmetric: bool = False
    tail: int = 0

    @property
    def rows(self) -> int:
        """All rows, those of no expert included."""
        return sum(self.sizes) + self.tail


CASES = (
    GroupedCase("one_expert", (3,), 34, 100),
    GroupedCase("empty_experts", (0, 0, 1, 0, 5, 0), 70, 64, tail=2),
    GroupedCase("two_spans_f16", (1, 0, 17, 2), 34, 1056, F16, tail=1),
    GroupedCase("all_rows_of_the_last", (0, 0, 21), 30, 72),
    GroupedCase("many_rows_f16", (70, 0, 65, 64, 1), 66, 80, F16, tail=3),
    GroupedCase("many_rows_two_spans", (66, 71), 20, 1040),
    GroupedCase("int4", (2, 0, 1, 17), 66, 192, bits=4, tail=2),
    GroupedCase("int4_sym_two_spans_f16", (1, 0, 4), 34, 1088, F16, bits=4, symmetric=True),
    GroupedCase("int8_group_32_f16", (0, 3, 18), 70, 160, F16, bits=8, group_size=32),
    GroupedCase("many_rows_int4", (66, 0, 67), 34, 256, bits=4, group_size=128, tail=1),
    GroupedCase("no_experts_have_rows", (0, 0, 0), 34, 64, tail=4),
)

MOE_HIDDEN, MOE_INTERMEDIATE, MOE_EXPERTS, MOE_TOP = 2048, 768, 128, 8
"""A mixture of 128 experts of which a token takes 8, of 30 billion weights in all."""


def _routed(tokens: int) -> tuple[int, ...]:
    """Group sizes of random routing, the same each time."""
    make = torch.Generator().manual_seed(tokens)
    chosen = torch.rand((tokens, MOE_EXPERTS), generator=make).topk(MOE_TOP).indices
    return tuple(torch.bincount(chosen.reshape(-1), minlength=MOE_EXPERTS).tolist())


BENCH_CASES = tuple(
    GroupedCase(f"{name}_{tokens}_tokens{'_int4' if bits else ''}", _routed(tokens), *shape, BF16, bits=bits)
    for tokens in (1, 16, 64, 4096)
    for bits in (0, 4)
    for name, shape in (
        ("gate_up", (2 * MOE_INTERMEDIATE, MOE_HIDDEN)),
        ("down", (MOE_HIDDEN, MOE_INTERMEDIATE)),
    )
)
"""Sizes of real models, for a GPU."""


@dataclass
class GroupedInputs:
    """Random inputs: x, the weight, group_sizes, and the float weight that a quantized one was made of."""

    x: torch.Tensor
    weight: torch.Tensor | QuantizedWeight
    group_sizes: torch.Tensor
    float_weight: torch.Tensor


def make_inputs(case: GroupedCase, seed: int = 0) -> GroupedInputs:
    """Normal numbers, the weight scaled so that outputs are of order 1; rows of no expert are NaN."""
    make = torch.Generator().manual_seed(seed)
    x = torch.randn((case.rows, case.in_features), generator=make)
    x[sum(case.sizes) :] = float("nan")
    shape = (len(case.sizes), case.out_features, case.in_features)
    floats = (torch.randn(shape, generator=make) * case.in_features**-0.5).to(device(), case.dtype)
    weight = floats
    if case.bits:
        scheme: dict[str, Any] = {"bits": case.bits, "group_size": case.group_size, "symmetric": case.symmetric}
        weight = QuantizedWeight.quantize(floats, **scheme)
    sizes = torch.tensor(case.sizes, dtype=torch.int32, device=device())
    return GroupedInputs(x.to(device(), case.dtype), weight, sizes, floats)


def aot_cases(arch: str) -> list[AotCase]:
    """What is compiled ahead of time for a target of `aot.ARCHS`."""
    return [*_product_cases(arch), *_other_cases(arch)]


def _constexprs(arch: str, config: MatmulConfig, bits: int) -> dict[str, Any]:
    return {
        "BITS": bits,
        "GROUP": 64 if bits else 0,
        "BLOCK_N": config.block_n,
        "BLOCK_M": config.block_m,
        "BLOCK_K": config.block_k,
        "BLOCK_E": padded_experts(MOE_EXPERTS),
        "EVEN_K": True,
        "PRECISION": dot_precision(arch),
    }


def _configs(arch: str, itemsize: int, bits: int, one_span: bool) -> tuple[MatmulConfig, ...]:
    """Every committed configuration of the kernel with all spans: those of tiles, then those of streams."""
    if bits:
        tiles = quantized_launch.tile_configs(arch, itemsize, bits, one_span)
        return *tiles, *(quantized_launch.stream_config(arch, itemsize, bits, rows) for rows in (64, 16))
    tiles = float_launch.tile_configs(arch, itemsize, one_span, False)
    return *tiles, *(float_launch.stream_config(arch, itemsize, rows) for rows in (64, 16))


def _product_cases(arch: str) -> Iterator[AotCase]:
    """bf16 with float and 4-bit weights in every configuration; others in the least and the greatest."""
    for dtype, bits in ((BF16, 0), (BF16, 4), (BF16, 8), (torch.float32, 0), (torch.float32, 4)):
        kind = f"int{bits}_{TYPE_NAMES[dtype]}" if bits else TYPE_NAMES[dtype]
        pointers = {"sizes_ptr": "*i32"} | ({"w_ptr": "*i32", "params_ptr": "*i32"} if bits else {})
        expect = expected_quantized(arch, dtype) if bits else expected(arch, dtype)
        every = dtype == BF16 and bits != 8
        streams = _configs(arch, dtype.itemsize, bits, True)[-2 if every else -1 :]
        for config in streams:
            constexprs = _constexprs(arch, config, bits)
            name = f"stream_{kind}_m{config.block_m}"
            yield aot_case(name, split_kernel, arch, config, dtype, constexprs, pointers, expect)
        for one_span in (True, False):
            configs = _configs(arch, dtype.itemsize, bits, one_span)
            for config in dict.fromkeys(configs if every else (configs[0], configs[-1])):
                constexprs = _constexprs(arch, config, bits) | {"GROUP_M": GROUP_M, "ONE_SPAN": one_span}
                name = f"tile_{kind}_{config.block_n}x{config.block_m}_k{config.block_k}"
                name += "" if one_span else "_spans"
                yield aot_case(name, tiled_kernel, arch, config, dtype, constexprs, pointers, expect)


def _other_cases(arch: str) -> Iterator[AotCase]:
    config = MatmulConfig(0, 0, 0, num_warps=4, num_stages=1)
    constexprs = {"BLOCK": MERGE_BLOCK, "BLOCK_E": padded_experts(MOE_EXPERTS)}
    yield aot_case("merge", merge_kernel, arch, config, BF16, constexprs, {"sizes_ptr": "*i32"})
    for name, ids in (("sort_i32", "*i32"), ("sort_i64", "*i64")):
        pointers = {"ids_ptr": ids, "order_ptr": "*i32", "inverse_ptr": "*i32", "sizes_ptr": "*i32"}
        yield aot_case(name, sort_kernel, arch, config, BF16, {"BLOCK": SORT_BLOCK}, pointers)
