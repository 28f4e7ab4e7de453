"""Integer matmul beside cuBLAS on the same shape in 16 bits. Small cases in the interpreter show only that it runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pyrite_kernels import QuantizedWeight, qmatmul
from pyrite_kernels.qmatmul import reference
from pyrite_kernels.qmatmul.cases import BENCH_CASES, CASES, QuantizedCase, make_inputs
from pyrite_kernels.testing import assert_close, interpreted

SIZES = CASES[:2] if interpreted() else BENCH_CASES


def moved_bytes(case: QuantizedCase, weight_bytes: int) -> int:
    """Bytes of weight, x, output and residual, each once."""
    rows = case.rows * (case.in_features + case.out_features * (2 if case.residual else 1))
    return weight_bytes + rows * case.dtype.itemsize


def time(benchmark: Any, case: QuantizedCase, weight_bytes: int, calls: list[Any]) -> None:
    """Time calls in turn, each to its end on the device; each has a weight of its own, so that no cache holds it."""
    turn = iter(range(1 << 60))

    def run() -> None:
        calls[next(turn) % len(calls)]()
        if not interpreted():
            torch.cuda.synchronize()

    flops = 2 * case.rows * case.out_features * case.in_features
    benchmark.extra_info |= {"shape": case.name, "bytes": moved_bytes(case, weight_bytes), "flops": flops}
    benchmark.pedantic(run, rounds=1 if interpreted() else 50, warmup_rounds=0 if interpreted() else 6)


def turns(weight_bytes: int) -> int:
    """How many weights make 256 MB, at most 8."""
    return 1 if interpreted() else max(1, min(8, (256 << 20) // weight_bytes))


@pytest.mark.parametrize("case", SIZES, ids=lambda case: case.name)
def test_qmatmul(benchmark: Any, case: QuantizedCase) -> None:
    x, qweight = make_inputs(case)
    got = qmatmul(x.x, qweight, **x.options)
    assert_close(got, reference.qmatmul(x.x, qweight, **x.options), max_error=5e-2, rms_error=1e-2)
    weights = [
        QuantizedWeight(
            qweight.words.clone(),
            qweight.params.clone(),
            qweight.shape,
            qweight.bits,
            qweight.group_size,
            qweight.symmetric,
        )
        for _ in range(turns(qweight.nbytes))
    ]
    calls = [lambda w=w: qmatmul(x.x, w, **x.options, out=got) for w in weights]
    time(benchmark, case, qweight.nbytes, calls)


@pytest.mark.parametrize("case", SIZES, ids=lambda case: case.name)
def test_torch_linear(benchmark: Any, case: QuantizedCase) -> None:
    """cuBLAS on a GPU, by the float weight, without the residual."""
    x, _ = make_inputs(case)
    weights = [x.weight.clone() for _ in range(turns(x.weight.nbytes))]
    calls = [lambda w=w: torch.nn.functional.linear(x.x, w) for w in weights]
    time(benchmark, case, x.weight.nbytes, calls)
