"""Paged decode beside a copy of as many bytes. Small cases in the interpreter show only that it runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pyrite_kernels import paged_decode
from pyrite_kernels.paged_decode import reference
from pyrite_kernels.paged_decode.cases import BENCH_CASES, CASES
from pyrite_kernels.ragged_prefill.cases import AttentionCase, make_inputs
from pyrite_kernels.testing import assert_close, interpreted

SIZES = CASES[:2] if interpreted() else BENCH_CASES


def kv_bytes(case: AttentionCase) -> int:
    """Bytes of the keys and values that are seen."""
    keys = sum(min(length, case.window or length) for length, _ in case.sequences)
    return 2 * keys * case.num_kv_heads * case.head_dim * (case.cache_dtype or case.dtype).itemsize


def time(benchmark: Any, case: AttentionCase, call: Any) -> None:
    """Time `call` to its end on the device."""

    def run() -> None:
        call()
        if not interpreted():
            torch.cuda.synchronize()

    benchmark.extra_info |= {"shape": case.name, "bytes": kv_bytes(case)}
    benchmark.pedantic(run, rounds=1 if interpreted() else 50, warmup_rounds=0 if interpreted() else 5)


@pytest.mark.parametrize("case", SIZES, ids=lambda case: case.name)
def test_paged_decode(benchmark: Any, case: AttentionCase) -> None:
    x = make_inputs(case)
    got = paged_decode(*x.decode(), **x.options)
    first = (x.q[:1], x.k_cache, x.v_cache, x.block_table[:1], x.seq_lens[:1])
    assert_close(got[:1], reference.paged_decode(*first, **x.options), max_error=5e-2, rms_error=1e-2)
    time(benchmark, case, lambda: paged_decode(*x.decode(), **x.options, out=got))


@pytest.mark.parametrize("case", SIZES, ids=lambda case: case.name)
def test_copy_roof(benchmark: Any, case: AttentionCase) -> None:
    """A copy that reads half of the bytes and writes the other half."""
    source = torch.zeros(kv_bytes(case) // 2, dtype=torch.uint8, device="cpu" if interpreted() else "cuda")
    target = torch.empty_like(source)
    time(benchmark, case, lambda: target.copy_(source))
