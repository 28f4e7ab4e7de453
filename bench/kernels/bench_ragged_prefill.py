"""Ragged prefill beside torch's attention on contiguous keys. Small cases in the interpreter show only that it runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pyrite_kernels import ragged_prefill
from pyrite_kernels.ragged_prefill import reference
from pyrite_kernels.ragged_prefill.cases import BENCH_CASES, CASES, AttentionCase, AttentionInputs, make_inputs
from pyrite_kernels.testing import assert_close, interpreted

SIZES = CASES[:2] if interpreted() else BENCH_CASES


def pairs(case: AttentionCase) -> int:
    """Queries times the keys that each sees."""
    window = case.window or 1 << 62
    return sum(min(p + 1, window) for length, new in case.sequences for p in range(length - new, length))


def last_rows(x: AttentionInputs, count: int) -> AttentionInputs:
    """The step of only the last new tokens of the last sequence."""
    new = min(count, int(x.cu_seqlens_q[-1] - x.cu_seqlens_q[-2]))
    starts = torch.tensor([0, new], dtype=torch.int32, device=x.q.device)
    return AttentionInputs(x.q[-new:], x.k_cache, x.v_cache, x.block_table[-1:], starts, x.seq_lens[-1:], x.options)


def synchronize() -> None:
    if not interpreted():
        torch.cuda.synchronize()


def time(benchmark: Any, case: AttentionCase, call: Any) -> None:
    """Time `call` to its end on the device; flops are of both products over visible keys."""

    def run() -> None:
        call()
        synchronize()

    benchmark.extra_info |= {"shape": case.name, "flops": 4 * pairs(case) * case.num_heads * case.head_dim}
    benchmark.pedantic(run, rounds=1 if interpreted() else 30, warmup_rounds=0 if interpreted() else 5)


@pytest.mark.parametrize("case", SIZES, ids=lambda case: case.name)
def test_ragged_prefill(benchmark: Any, case: AttentionCase) -> None:
    x = make_inputs(case)
    few = last_rows(x, 4)
    expected = reference.ragged_prefill(*few.prefill(), **few.options)
    got = ragged_prefill(*x.prefill(), **x.options)
    assert_close(got[-len(expected) :], expected, max_error=5e-2, rms_error=1e-2)
    time(benchmark, case, lambda: ragged_prefill(*x.prefill(), **x.options, out=got))


@pytest.mark.parametrize(
    "case", [c for c in SIZES if len(c.sequences) == 1 and not c.window], ids=lambda case: case.name
)
def test_torch_sdpa(benchmark: Any, case: AttentionCase) -> None:
    """Torch's own choice of backend, contiguous [1, heads, S, head_dim] of the query's dtype."""
    x = make_inputs(case)
    length, heads = case.sequences[0][0], (case.num_heads, case.num_kv_heads, case.num_kv_heads)
    q, k, v = (torch.randn(1, h, length, case.head_dim, dtype=case.dtype, device=x.q.device) for h in heads)
    attend = torch.nn.functional.scaled_dot_product_attention
    time(benchmark, case, lambda: attend(q, k, v, is_causal=True, enable_gqa=True))
