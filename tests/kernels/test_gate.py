"""`gate` against its twin."""

from __future__ import annotations

import pytest
import torch
from pyrite_kernels import gate
from pyrite_kernels.gate import reference
from pyrite_kernels.gate.cases import CASES, RowsCase
from pyrite_kernels.testing import assert_close, device, poisoned

BOUND = {torch.float32: 1e-6, torch.float16: 1e-3}


def inputs(case: RowsCase) -> tuple[torch.Tensor, torch.Tensor]:
    make = torch.Generator().manual_seed(0)
    x, logits = (3.0 * torch.randn(case.num_rows, case.width, generator=make) for _ in range(2))
    return x.to(device(), case.dtype), logits.to(device(), case.dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_twin_agrees(case: RowsCase) -> None:
    x, logits = inputs(case)
    out = poisoned(x.shape, case.dtype)
    assert gate(x, logits, out=out) is out
    expected = reference.gate(x.float(), logits.float())
    assert_close(out, expected, max_error=10 * BOUND[case.dtype], rms_error=BOUND[case.dtype])


def test_views_in_place_and_nothing_written_beside_the_rows() -> None:
    x, logits = inputs(CASES[1])
    expected = gate(x, logits)
    wide = poisoned((x.shape[0] + 1, 2 * x.shape[1]), x.dtype)
    inner = wide[:-1, 7 : 7 + x.shape[1]]
    inner.copy_(x)
    gate(inner, torch.cat([logits, logits], dim=1)[:, x.shape[1] :], out=inner)
    assert torch.equal(inner, expected)
    inner.fill_(float("nan"))
    assert wide.isnan().all()


def test_extreme_gates() -> None:
    logits = torch.tensor([[1e30, -1e30, float("inf"), -float("inf"), 0.0]]).to(device())
    assert gate(2.0 * torch.ones_like(logits), logits)[0].tolist() == [2.0, 0.0, 2.0, 0.0, 1.0]


def test_a_row_is_the_same_alone_and_in_any_batch() -> None:
    x, logits = inputs(CASES[1])
    assert torch.equal(gate(x[5:6], logits[5:6]), gate(x, logits)[5:6])


def test_no_rows() -> None:
    assert gate(torch.empty(0, 8, device=device()), torch.empty(0, 8, device=device())).shape == (0, 8)


def test_a_broken_contract_is_a_value_error() -> None:
    x, logits = inputs(CASES[0])
    with pytest.raises(ValueError, match="shape of gate"):
        gate(x, logits[:, 1:])
    with pytest.raises(ValueError, match="dtype of x"):
        gate(x.long(), logits)
    with pytest.raises(ValueError, match="shape of out"):
        gate(x, logits, out=x[:, 1:])
