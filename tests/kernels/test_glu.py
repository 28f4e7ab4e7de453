"""`glu` against its twin, on halves of one tensor too."""

from __future__ import annotations

import pytest
import torch
from pyrite_kernels import glu
from pyrite_kernels.glu import reference
from pyrite_kernels.glu.cases import CASES, RowsCase
from pyrite_kernels.testing import assert_close, device, poisoned

BOUND = {torch.float32: 1e-6, torch.float16: 1e-3}


def inputs(case: RowsCase) -> tuple[torch.Tensor, torch.Tensor]:
    make = torch.Generator().manual_seed(0)
    gate, up = (3.0 * torch.randn(case.num_rows, case.width, generator=make) for _ in range(2))
    return gate.to(device(), case.dtype), up.to(device(), case.dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_twin_agrees(case: RowsCase) -> None:
    gate, up = inputs(case)
    out = poisoned(gate.shape, case.dtype)
    assert glu(gate, up, out=out) is out
    expected = reference.glu(gate.float(), up.float())
    assert_close(out, expected, max_error=10 * BOUND[case.dtype], rms_error=BOUND[case.dtype])


def test_halves_of_one_tensor_and_nothing_written_beside_the_rows() -> None:
    gate, up = inputs(CASES[1])
    both = torch.cat([gate, up], dim=1)
    wide = poisoned((gate.shape[0] + 1, 2 * gate.shape[1]), gate.dtype)
    out = wide[:-1, 7 : 7 + gate.shape[1]]
    glu(*both.chunk(2, dim=1), out=out)
    assert torch.equal(out, glu(gate, up))
    out.fill_(float("nan"))
    assert wide.isnan().all()


def test_in_place_and_other_dtypes() -> None:
    gate, up = inputs(CASES[0])
    expected = reference.glu(gate, up)
    half = torch.empty(gate.shape, dtype=torch.float16, device=device())
    assert_close(glu(gate, up, out=half), expected, max_error=1e-2, rms_error=1e-3)
    assert_close(glu(gate, up, out=up), expected, max_error=1e-5, rms_error=1e-6)


def test_extreme_gates() -> None:
    gate = torch.tensor([[1e30, -1e30, 200.0, -200.0, 0.0, float("inf"), float("nan")]]).to(device())
    got = glu(gate, torch.ones_like(gate))[0].tolist()
    assert got[:6] == [gate[0, 0].item(), 0.0, 200.0, 0.0, 0.0, float("inf")] and got[6] != got[6]


def test_a_row_is_the_same_alone_and_in_any_batch() -> None:
    gate, up = inputs(CASES[1])
    assert torch.equal(glu(gate[5:6], up[5:6]), glu(gate, up)[5:6])


def test_no_rows() -> None:
    assert glu(torch.empty(0, 8, device=device()), torch.empty(0, 8, device=device())).shape == (0, 8)


def test_a_broken_contract_is_a_value_error() -> None:
    gate, up = inputs(CASES[0])
    with pytest.raises(ValueError, match="shape of up"):
        glu(gate, up[:, 1:])
    with pytest.raises(ValueError, match="dtype of gate"):
        glu(gate.double(), up)
    with pytest.raises(ValueError, match="last stride of up"):
        glu(torch.ones(2, 3, device=device()), torch.ones(3, 2, device=device()).T)
    with pytest.raises(ValueError, match="shape of out"):
        glu(gate, up, out=gate[:, 1:])
