"""Float matmul and GLU beside cuBLAS and a copy of as many bytes. In the interpreter small cases show that it runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pyrite_kernels import matmul, matmul_glu
from pyrite_kernels.matmul import reference
from pyrite_kernels.matmul.cases import BENCH_CASES, CASES, GLU_CASES, MatmulCase, make_inputs
from pyrite_kernels.testing import assert_close, interpreted

SIZES = CASES[:2] if interpreted() else BENCH_CASES
GLU_SIZES = GLU_CASES[:2] if interpreted() else tuple(case for case in BENCH_CASES if "gate_up" in case.name)


def moved_bytes(case: MatmulCase) -> int:
    """Bytes of weight, x, output and residual, each once."""
    elements = case.out_features * case.in_features + case.rows * case.in_features
    return (elements + case.rows * case.out_features * (2 if case.residual else 1)) * case.dtype.itemsize


def time(benchmark: Any, case: MatmulCase, calls: list[Any]) -> None:
    """Time calls in turn, each to its end on the device; each has a weight of its own, so that no cache holds it."""
    turn = iter(range(1 << 60))

    def run() -> None:
        calls[next(turn) % len(calls)]()
        if not interpreted():
            torch.cuda.synchronize()

    flops = 2 * case.rows * case.out_features * case.in_features
    benchmark.extra_info |= {"shape": case.name, "bytes": moved_bytes(case), "flops": flops}
    benchmark.pedantic(run, rounds=1 if interpreted() else 50, warmup_rounds=0 if interpreted() else 6)


def copies(weight: torch.Tensor) -> list[torch.Tensor]:
    """The weight, as many times as make 256 MB, at most 8."""
    count = 1 if interpreted() else max(1, min(8, (256 << 20) // weight.nbytes))
    return [weight, *(weight.clone() for _ in range(count - 1))]


@pytest.mark.parametrize("case", SIZES, ids=lambda case: case.name)
def test_matmul(benchmark: Any, case: MatmulCase) -> None:
    x = make_inputs(case)
    got = matmul(x.x, x.weight, **x.options)
    assert_close(got, reference.matmul(x.x, x.weight, **x.options), max_error=5e-2, rms_error=1e-2)
    time(benchmark, case, [lambda w=w: matmul(x.x, w, **x.options, out=got) for w in copies(x.weight)])


@pytest.mark.parametrize("case", SIZES, ids=lambda case: case.name)
def test_torch_linear(benchmark: Any, case: MatmulCase) -> None:
    """cuBLAS on a GPU, without the residual."""
    x = make_inputs(case)
    time(benchmark, case, [lambda w=w: torch.nn.functional.linear(x.x, w) for w in copies(x.weight)])


@pytest.mark.parametrize("case", GLU_SIZES, ids=lambda case: case.name)
def test_matmul_glu(benchmark: Any, case: MatmulCase) -> None:
    x = make_inputs(case)
    got = matmul_glu(x.x, x.weight, **x.options)
    assert_close(got, reference.matmul_glu(x.x, x.weight, **x.options), max_error=5e-2, rms_error=1e-2)
    time(benchmark, case, [lambda w=w: matmul_glu(x.x, w, **x.options, out=got) for w in copies(x.weight)])


@pytest.mark.parametrize("case", SIZES, ids=lambda case: case.name)
def test_copy_roof(benchmark: Any, case: MatmulCase) -> None:
    """A copy that reads half of the bytes and writes the other half."""
    source = torch.zeros(moved_bytes(case) // 2, dtype=torch.uint8, device="cpu" if interpreted() else "cuda")
    target = torch.empty_like(source)
    time(benchmark, case, [lambda: target.copy_(source)])
