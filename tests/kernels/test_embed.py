"""`embed` against its twin: rows are copied or dequantized exactly, ids that do not exist read nothing."""

from __future__ import annotations

import pytest
import torch
from pyrite_kernels import QuantizedWeight, embed
from pyrite_kernels.embed import reference
from pyrite_kernels.embed.cases import CASES, QUANTIZED_CASES, EmbedCase, QuantizedEmbedCase
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


def quantized_inputs(case: QuantizedEmbedCase) -> tuple[torch.Tensor, QuantizedWeight]:
    make = torch.Generator().manual_seed(0)
    ids = torch.randint(case.vocab_size, (case.num_rows,), generator=make, dtype=torch.int32)
    per_group = (case.vocab_size, case.width // case.group_size)
    codes = torch.randint(1 << case.bits, (case.vocab_size, case.width), generator=make, dtype=torch.uint8)
    scales = (torch.rand(per_group, generator=make) + 0.5).half()
    zeros = None if case.symmetric else torch.randint(1 << case.bits, per_group, generator=make, dtype=torch.uint8)
    weight = QuantizedWeight.from_canonical(codes, scales, zeros, bits=case.bits, group_size=case.group_size)
    ids[-1] = case.vocab_size - 1
    return ids.to(device()), weight.to(device())


@pytest.mark.parametrize("case", QUANTIZED_CASES, ids=lambda case: case.name)
def test_rows_of_integers_are_exact(case: QuantizedEmbedCase) -> None:
    ids, weight = quantized_inputs(case)
    out = poisoned((case.num_rows, case.width), torch.float32)
    assert embed(ids, weight, out=out) is out
    assert torch.equal(out, reference.embed(ids, weight))
    assert torch.equal(embed(ids.long(), weight), out)
    assert torch.equal(embed(ids, weight, out=out.half()), out.half())


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


def test_ids_beyond_a_table_of_integers_give_nan() -> None:
    _, weight = quantized_inputs(QUANTIZED_CASES[0])
    ids = torch.tensor([0, -1, 10, 9, 2**31 - 1], dtype=torch.int32, device=device())
    out = embed(ids, weight)
    assert out[[1, 2, 4]].isnan().all() and torch.equal(out[[0, 3]], weight.dequantize()[[0, 9]])


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
    codes, scales = torch.zeros(2, 3, 64, dtype=torch.uint8), torch.ones(2, 3, 1, dtype=torch.float16)
    experts = QuantizedWeight.from_canonical(codes, scales, None, bits=8, group_size=64)
    with pytest.raises(ValueError, match="shape of weight"):
        embed(ids, experts.to(device()))
