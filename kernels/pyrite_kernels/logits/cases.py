"""Shapes and dtypes of the ops on logits, for tests, benchmarks and ahead-of-time compilation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pyrite_kernels.aot import AotCase
from pyrite_kernels.logits.kernel import (
    chunk_candidates_kernel,
    row_candidates_kernel,
    scale_softcap_kernel,
    sort_candidates_kernel,
)
from pyrite_kernels.logits.launch import candidate_sizes, candidate_warps
from pyrite_kernels.small_launch import (
    TYPE_NAMES,
    aot_case,
    elementwise_tile,
    elementwise_warps,
    wide_loads,
    wide_stores,
)


@dataclass(frozen=True)
class LogitsCase:
    """Rows of logits, of whose ids those below `vocab_limit` exist."""

    name: str
    num_rows: int
    vocab_size: int
    vocab_limit: int
    num_candidates: int
    dtype: torch.dtype = torch.float32


CASES = (
    LogitsCase("r1_v100_k1", 1, 100, 100, 1),
    LogitsCase("r3_v1000_k20", 3, 1000, 990, 20),
    LogitsCase("r2_v4096_k64", 2, 4096, 4096, 64),
    LogitsCase("r2_v9001_k64_f16", 2, 9001, 8200, 64, torch.float16),
    LogitsCase("r1_v70000_k256", 1, 70000, 69999, 256),
    LogitsCase("r2_v5000_k33_few_ids", 2, 5000, 33, 33),
)
"""Small batches that reach every branch; all run in the interpreter."""

BENCH_CASES = tuple(
    LogitsCase(f"r{rows}_v{vocab}_k64", rows, vocab, vocab, 64) for rows in (1, 16, 128) for vocab in (128256, 201088)
)
"""Sizes of real models: decode and large batches, the largest of 64 MB and more."""


def aot_cases(arch: str) -> list[AotCase]:
    """What is compiled ahead of time for a target of `aot.ARCHS`."""
    cases = []
    for dtype, capped, width in (
        (torch.float32, True, 128256),
        (torch.float32, False, 4096),
        (torch.bfloat16, True, 4096),
    ):
        block_r, block_w = elementwise_tile(width)
        types = {"multiplier": "fp32", "soft_cap": "fp32"}
        types |= dict.fromkeys(("x_ptr", "out_ptr"), "*" + TYPE_NAMES[dtype])
        constexprs = {"WIDTH": width, "BLOCK_R": block_r, "BLOCK_W": block_w, "HAS_CAP": capped}
        name = f"scale_{TYPE_NAMES[dtype]}_w{width}{'_cap' if capped else ''}"
        expect = wide_loads(arch) + wide_stores(arch)
        warps = elementwise_warps(arch)
        cases.append(aot_case(name, scale_softcap_kernel, types, constexprs, num_warps=warps, expect=expect))
    for num_candidates in (64, 256):
        cases += _candidate_cases(arch, num_candidates)
    return cases


def _candidate_cases(arch: str, num_candidates: int) -> list[AotCase]:
    """The three kernels of `select_candidates`."""
    sizes = candidate_sizes(128256, num_candidates)
    types = {"logits_ptr": "*fp32", "key_ptr": "*i64", "best_ptr": "*i64", "ids_ptr": "*i32"}
    types |= dict.fromkeys(("max_ptr", "sum_ptr", "values_ptr", "lse_ptr"), "*fp32")
    every = {**sizes, "VOCAB_SIZE": 128256, "NUM_CANDIDATES": num_candidates}
    cases = []
    for name, kernel, size, expect in (
        ("chunk", chunk_candidates_kernel, sizes["CHUNK"], wide_loads(arch)),
        ("row", row_candidates_kernel, sizes["BLOCK_K"], ()),
        ("sort", sort_candidates_kernel, sizes["KEEP"] * sizes["BLOCK_S"] // 2, ()),
    ):
        constexprs = {key: value for key, value in every.items() if key in kernel.arg_names}
        pointers = {key: value for key, value in types.items() if key in kernel.arg_names}
        warps = candidate_warps(arch, size)
        case = aot_case(f"{name}_k{num_candidates}", kernel, pointers, constexprs, num_warps=warps, expect=expect)
        cases.append(case)
    return cases
