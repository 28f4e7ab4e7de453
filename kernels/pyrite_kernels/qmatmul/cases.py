"""Shapes, dtypes and schemes of `qmatmul`, for tests, benchmarks and ahead-of-time compilation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pyrite_kernels.aot import AotCase
from pyrite_kernels.attention_launch import dot_precision
from pyrite_kernels.matmul.cases import BF16, F16, TYPE_NAMES, MatmulCase, MatmulInputs, aot_case, expected
from pyrite_kernels.matmul.cases import make_inputs as make_float_inputs
from pyrite_kernels.matmul.launch import GROUP_M, MatmulConfig
from pyrite_kernels.qmatmul.kernel import split_kernel, tiled_kernel
from pyrite_kernels.qmatmul.launch import stream_config, tile_configs
from pyrite_kernels.quantized import QuantizedWeight


@dataclass(frozen=True)
class QuantizedCase(MatmulCase):
    """One product by an integer weight: `MatmulCase`, and bits, group_size and symmetric of the weight."""

    bits: int = 4
    group_size: int = 64
    symmetric: bool = False


CASES = (
    QuantizedCase("one_row", 1, 64, 128),
    QuantizedCase("one_row_two_spans_f16", 1, 66, 1088, F16, bias=True, residual=True, symmetric=True),
    QuantizedCase("group_32", 5, 30, 96, bias=True, group_size=32),
    QuantizedCase("group_32_sym_f16", 20, 70, 160, F16, residual=True, group_size=32, symmetric=True),
    QuantizedCase("group_128_f16", 33, 40, 256, F16, group_size=128),
    QuantizedCase("int8", 3, 70, 192, residual=True, bits=8, symmetric=True),
    QuantizedCase("int8_asym_group_32_f16", 17, 24, 96, F16, bits=8, group_size=32),
    QuantizedCase("int8_group_128_two_spans", 2, 64, 1024, bits=8, group_size=128),
    QuantizedCase("one_output", 2, 1, 64),
    QuantizedCase("many_rows", 70, 140, 192, bias=True, residual=True),
    QuantizedCase("many_rows_two_spans_f16", 66, 40, 1056, F16, group_size=32, bias=True),
    QuantizedCase("many_rows_int8_f16", 66, 66, 128, F16, bits=8, group_size=128, symmetric=True),
)

BENCH_CASES = (
    QuantizedCase("decode_m1_qkv_8b", 1, 6144, 4096, BF16),
    QuantizedCase("decode_m1_down_8b", 1, 4096, 14336, BF16, residual=True),
    QuantizedCase("decode_m16_gate_up_8b_g128", 16, 28672, 4096, BF16, group_size=128, symmetric=True),
    QuantizedCase("decode_m1_head_8b_int8", 1, 128256, 4096, BF16, bits=8, symmetric=True),
    QuantizedCase("prefill_m1024_gate_up_8b", 1024, 28672, 4096, BF16),
    QuantizedCase("prefill_m4096_down_8b", 4096, 4096, 14336, BF16, residual=True),
    QuantizedCase("prefill_m2048_gate_up_8b_int8", 2048, 28672, 4096, BF16, bits=8, symmetric=True),
)
"""Sizes of real models, for a GPU."""


def make_inputs(case: QuantizedCase, seed: int = 0) -> tuple[MatmulInputs, QuantizedWeight]:
    """Random inputs, with the float weight and its quantized form."""
    inputs = make_float_inputs(case, seed)
    qweight = QuantizedWeight.quantize(
        inputs.weight, bits=case.bits, group_size=case.group_size, symmetric=case.symmetric
    )
    return inputs, qweight


POINTERS = {"words_ptr": "*i32", "params_ptr": "*i32"}

LEFT_IN_REGISTERS = r"wgmma\.mma_async\S+ \{[^}]*\}, \{"
"""On Hopper the dequantized operand must not go through shared memory."""

AOT_SCHEMES = ((4, 64), (4, 32), (4, 128), (8, 64))
"""(bits, group_size) that are compiled in the streaming form."""


def aot_cases(arch: str) -> list[AotCase]:
    """What is compiled ahead of time for a target of `aot.ARCHS`."""
    return [*_stream_cases(arch), *_tile_cases(arch)]


def _constexprs(arch: str, config: MatmulConfig, bits: int, group_size: int) -> dict[str, Any]:
    return {
        "BITS": bits,
        "GROUP": group_size,
        "BLOCK_N": config.block_n,
        "BLOCK_M": config.block_m,
        "EVEN_K": True,
        "PRECISION": dot_precision(arch),
    }


def expected_quantized(arch: str, dtype: torch.dtype) -> tuple[str, ...]:
    """What the assembly of a product by a quantized weight must have."""
    registers = (LEFT_IN_REGISTERS,) if arch == "sm_90" and dtype.itemsize == 2 else ()
    return expected(arch, dtype) + registers


def _stream_cases(arch: str) -> Iterator[AotCase]:
    shapes = [(BF16, 16, *scheme) for scheme in AOT_SCHEMES]
    shapes += [(BF16, 32, 4, 64), (BF16, 64, 4, 64), (F16, 16, 4, 64), (torch.float32, 16, 4, 64)]
    for dtype, rows, bits, group_size in shapes:
        config = stream_config(arch, dtype.itemsize, bits, rows)
        name = f"stream_int{bits}_g{group_size}_{TYPE_NAMES[dtype]}_m{rows}"
        constexprs = _constexprs(arch, config, bits, group_size)
        yield aot_case(
            name, split_kernel, arch, config, dtype, constexprs, POINTERS, expect=expected_quantized(arch, dtype)
        )


def _tile_cases(arch: str) -> Iterator[AotCase]:
    """Every committed tile, and the streaming configuration with the epilogue of one span."""
    for dtype, bits in ((BF16, 4), (BF16, 8), (torch.float32, 4)):
        for one_span in (True, False):
            configs = tile_configs(arch, dtype.itemsize, bits, one_span)
            configs += (stream_config(arch, dtype.itemsize, bits, 16),) if one_span else ()
            for config in dict.fromkeys(configs):
                constexprs = _constexprs(arch, config, bits, 64) | {
                    "GROUP_M": GROUP_M,
                    "ONE_SPAN": one_span,
                    "HAS_BIAS": False,
                    "HAS_RESIDUAL": True,
                }
                name = f"tile_int{bits}_{TYPE_NAMES[dtype]}_{config.block_n}x{config.block_m}"
                name += "" if one_span else "_spans"
                yield aot_case(
                    name,
                    tiled_kernel,
                    arch,
                    config,
                    dtype,
                    constexprs,
                    POINTERS,
                    expect=expected_quantized(arch, dtype),
                )
