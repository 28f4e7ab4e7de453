"""`scale_softcap` and `select_candidates` against their twins: exact ids, ties, infinities, columns past the limit."""

from __future__ import annotations

import math

import pytest
import torch
from pyrite_kernels import scale_softcap, select_candidates
from pyrite_kernels.logits import reference
from pyrite_kernels.logits.cases import CASES, LogitsCase
from pyrite_kernels.testing import assert_close, device, poisoned

INF = float("inf")


def inputs(case: LogitsCase) -> torch.Tensor:
    """Logits on a coarse grid, so that there are many ties; NaN where no id exists."""
    make = torch.Generator().manual_seed(0)
    x = (40.0 * torch.randn(case.num_rows, case.vocab_size, generator=make)).round() / 8
    x[:, case.vocab_limit :] = float("nan")
    return x.to(device(), case.dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_candidates_are_those_of_the_twin(case: LogitsCase) -> None:
    x = inputs(case)
    ids, values, lse = select_candidates(x, num_candidates=case.num_candidates, vocab_limit=case.vocab_limit)
    expected = reference.select_candidates(x, num_candidates=case.num_candidates, vocab_limit=case.vocab_limit)
    assert ids.dtype == torch.int32 and torch.equal(ids, expected[0])
    assert values.dtype == torch.float32 and torch.equal(values, expected[1])
    assert (lse - expected[2]).abs().max() < 2e-5


def test_all_equal_takes_the_lowest_ids() -> None:
    x = torch.full((1, 9000), -3.5).to(device())
    x[0, 1::2] *= 1.0
    ids, values, lse = select_candidates(x, num_candidates=40, vocab_limit=9000)
    assert ids[0].tolist() == list(range(40)) and values.eq(-3.5).all()
    assert lse.item() == pytest.approx(math.log(9000) - 3.5, abs=1e-5)


def test_zeros_of_both_signs_are_equal() -> None:
    x = torch.tensor([[-1.0, -0.0, 0.0, -0.0, 1e-40, -1e-40]]).to(device())
    ids, _, _ = select_candidates(x, num_candidates=6, vocab_limit=6)
    assert ids[0].tolist() == [4, 1, 2, 3, 5, 0]


def test_infinities_and_nan() -> None:
    x = torch.full((4, 5000), -INF)
    x[0, [3, 4500]] = torch.tensor([-300.0, -301.0])
    x[1, 7] = INF
    x[2] = torch.linspace(-1, 1, 5000)
    x[2, 4999] = -float("nan")
    ids, values, lse = select_candidates(x.to(device()), num_candidates=3, vocab_limit=5000)
    assert ids[0].tolist() == [3, 4500, 0] and values[0].tolist() == [-300.0, -301.0, -INF]
    assert lse[0].item() == pytest.approx(-300 + math.log1p(math.exp(-1)), abs=1e-4)
    assert ids[1].tolist() == [7, 0, 1] and lse[1] == INF
    assert ids[2].tolist() == [4999, 4998, 4997] and lse[2].isnan() and values[2, 0].isnan()
    assert ids[3].tolist() == [0, 1, 2] and lse[3] == -INF


def test_a_row_is_the_same_alone_and_in_any_batch() -> None:
    x = inputs(CASES[3])
    options = {"num_candidates": 64, "vocab_limit": 8200}
    for whole, alone in zip(select_candidates(x, **options), select_candidates(x[1:].clone(), **options), strict=True):
        assert torch.equal(whole[1:], alone)


def test_rows_of_a_wider_tensor() -> None:
    x = inputs(CASES[1])
    wide = torch.cat([torch.full_like(x, 1e9), x, torch.full_like(x, 1e9)], dim=1)
    options = {"num_candidates": 20, "vocab_limit": 990}
    for got, expected in zip(
        select_candidates(wide[:, 1000:2000], **options), select_candidates(x, **options), strict=True
    ):
        assert torch.equal(got, expected)


def test_no_rows_to_select_from() -> None:
    ids, values, lse = select_candidates(torch.empty(0, 50, device=device()), num_candidates=5, vocab_limit=50)
    assert ids.shape == (0, 5) and values.shape == (0, 5) and lse.shape == (0,)


@pytest.mark.parametrize("soft_cap", [None, 30.0], ids=["plain", "cap"])
@pytest.mark.parametrize(
    ("rows", "width", "dtype"),
    [(1, 64, torch.float32), (3, 2500, torch.float32), (37, 60, torch.float16)],
    ids=["r1_v64_f32", "r3_v2500_f32", "r37_v60_f16"],
)
def test_scaling_and_the_cap_are_those_of_the_twin(
    rows: int, width: int, dtype: torch.dtype, soft_cap: float | None
) -> None:
    x = (50.0 * torch.randn(rows, width, generator=torch.Generator().manual_seed(0))).to(device(), dtype)
    wide = poisoned((rows + 1, width + 5), dtype)
    out = wide[:-1, 5:]
    assert scale_softcap(x, multiplier=0.7, soft_cap=soft_cap, out=out) is out
    expected = reference.scale_softcap(x.float(), multiplier=0.7, soft_cap=soft_cap)
    bound = 1e-6 if dtype == torch.float32 else 1e-3
    assert_close(out, expected, max_error=4 * bound, rms_error=bound)
    assert torch.equal(scale_softcap(x, multiplier=0.7, soft_cap=soft_cap), out)
    out.fill_(float("nan"))
    assert wide.isnan().all()


def test_the_cap_is_precise_everywhere() -> None:
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([1e-30, 1e-10, -1e-5, 0.0, 100.0, -INF, INF])])[None]
    got = scale_softcap(x.to(device()), multiplier=1.0, soft_cap=1.0).cpu().double()
    expected = torch.tanh(x.double())
    assert ((got - expected).abs() <= 5e-7 * expected.abs()).all()
    assert scale_softcap(torch.full((1, 1), float("nan")).to(device()), multiplier=1.0, soft_cap=1.0).isnan().all()


def test_a_broken_contract_is_a_value_error() -> None:
    x = torch.zeros(2, 64).to(device())
    with pytest.raises(ValueError, match="vocab_limit: got 65, expected 1 to vocab_size = 64"):
        select_candidates(x, num_candidates=4, vocab_limit=65)
    with pytest.raises(ValueError, match="num_candidates: got 33, expected 1 to 32"):
        select_candidates(x, num_candidates=33, vocab_limit=32)
    with pytest.raises(ValueError, match="num_candidates: got 0"):
        select_candidates(x, num_candidates=0, vocab_limit=32)
    with pytest.raises(ValueError, match="shape of logits"):
        select_candidates(x[0], num_candidates=1, vocab_limit=32)
    with pytest.raises(ValueError, match=r"soft_cap: got 0\.0"):
        scale_softcap(x, multiplier=1.0, soft_cap=0.0)
    with pytest.raises(ValueError, match="multiplier"):
        scale_softcap(x, multiplier=INF, soft_cap=None)
    with pytest.raises(ValueError, match="shape of out"):
        scale_softcap(x, multiplier=1.0, soft_cap=None, out=x[:1])
