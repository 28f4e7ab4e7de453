"""`embed` against its twin: rows are copied exactly, ids that do not exist read nothing."""

from __future__ import annotations

import pytest
import torch
from pyrite_kernels import embed
from pyrite_kernels.embed import reference
from pyrite_kernels.embed.cases import CASES, EmbedCase
from pyrite_kernels.testing import device, poisoned


def inputs(case: EmbedCase) -> tuple[torch.Tensor, torch.Tensor]:
    make = torch.Generator().manual_seed(0)
    ids = torch.randint(case.vocab_size, (case.num_rows,), generator=make, dtype=torch.int32)
    weight = torch.randn(case.vocab_size, case.width, generator=make)
    return ids.to(device()), weight.to(device(), case.dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rows_are_those_of_the_twin(case: EmbedCase) -> None:
    ids, weight = inputs(case)
    out = poisoned((case.num_rows, case.width), case.dtype)
    assert embed(ids, weight, out=out) is out
    assert torch.equal(out, reference.embed(ids, weight))
    assert torch.equal(embed(ids.long(), weight), out)
    assert torch.equal(embed(ids, weight, out=out.float()), out.float())


def test_views_of_larger_tensors_and_nothing_written_beside_them() -> None:
    ids, weight = inputs(CASES[1])
    wide = poisoned((len(ids) + 2, 3 * weight.shape[1]), weight.dtype)
    out = wide[1:-1, weight.shape[1] : 2 * weight.shape[1]]
    embed(ids, torch.cat([weight, weight], dim=1)[:, : weight.shape[1]], out=out)
    assert torch.equal(out, weight[ids.long()])
    out.fill_(float("nan"))
    assert wide.isnan().all()


def test_ids_that_do_not_exist_give_nan() -> None:
    _, weight = inputs(CASES[0])
    ids = torch.tensor([0, -1, 10, 9, 2**31 - 1], dtype=torch.int32, device=device())
    out = embed(ids, weight)
    assert out[[1, 2, 4]].isnan().all() and torch.equal(out[[0, 3]], weight[[0, 9]])


def test_no_rows() -> None:
    ids, weight = inputs(CASES[0])
    assert embed(ids[:0], weight).shape == (0, 64)


def test_a_broken_contract_is_a_value_error() -> None:
    ids, weight = inputs(CASES[0])
    with pytest.raises(ValueError, match="dtype of ids"):
        embed(ids.short(), weight)
    with pytest.raises(ValueError, match="shape of ids"):
        embed(ids[None], weight)
    with pytest.raises(ValueError, match="shape of weight"):
        embed(ids, weight[0])
    with pytest.raises(ValueError, match="shape of out"):
        embed(ids, weight, out=weight)
