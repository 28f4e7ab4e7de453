"""`qmatmul` against its twin, a row's bits over numbers of rows, and a wrong scale group.

What bits show in Triton's interpreter is said in `test_matmul.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyrite_kernels import QuantizedWeight, qmatmul
from pyrite_kernels.matmul.cases import ROWS
from pyrite_kernels.qmatmul import launch, reference
from pyrite_kernels.qmatmul.cases import CASES, QuantizedCase, make_inputs
from pyrite_kernels.testing import assert_close, device, poisoned

F16, F32 = torch.float16, torch.float32
BY_NAME = {case.name: case for case in CASES}


def bounds(dtype: torch.dtype) -> dict[str, float]:
    """f32 differs by the order of sums; f16 by the rounding of the output."""
    return {"max_error": 2e-5, "rms_error": 2e-6} if dtype == F32 else {"max_error": 4e-3, "rms_error": 4e-4}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_parity(case: QuantizedCase) -> None:
    x, qweight = make_inputs(case)
    out = poisoned((case.rows, case.out_features), case.dtype)
    got = qmatmul(x.x, qweight, **x.options, out=out)
    assert got is out
    assert_close(got, reference.qmatmul(x.x, qweight, **x.options), **bounds(case.dtype))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [F32, F16], ids=["f32", "f16"])
def test_every_code_zero_and_scale_is_decoded_exactly(dtype: torch.dtype, bits: int) -> None:
    most = 1 << bits
    codes = torch.arange(most, dtype=torch.uint8).repeat(64, 512 // most).view(64, 512)
    make = torch.Generator().manual_seed(1)
    zeros = torch.randint(0, most, (64, 16), generator=make, dtype=torch.uint8)
    scales = (torch.randn((64, 16), generator=make) * 2.0 ** torch.randint(-14, 3, (64, 16), generator=make)).half()
    scales[0, :4] = torch.tensor([2.0**-24, 3 * 2.0**-24, 0.0, 65504.0 / most]).half()
    qweight = QuantizedWeight.from_canonical(codes, scales, zeros, bits=bits, group_size=32).to(device())
    rows = torch.arange(0, 512, 9)  # a row of x that is 1 in one place picks a column of the weight
    x = torch.zeros((len(rows), 512), dtype=dtype, device=device())
    x[torch.arange(len(rows)), rows] = 1.0
    assert torch.equal(qmatmul(x, qweight), qweight.dequantize().to(dtype)[:, rows].T)


@pytest.mark.parametrize("dtype", [F32, F16], ids=["f32", "f16"])
@pytest.mark.parametrize(("inputs", "bits"), [(160, 4), (1056, 4), (1056, 8)], ids=["one_span", "two_spans", "int8"])
def test_a_row_has_the_same_bits_among_any_number_of_rows(inputs: int, bits: int, dtype: torch.dtype) -> None:
    x, qweight = make_inputs(QuantizedCase("", max(ROWS), 34, inputs, dtype, bias=True, bits=bits, group_size=32))
    whole = qmatmul(x.x, qweight, **x.options)
    for rows in ROWS:
        assert torch.equal(qmatmul(x.x[:rows], qweight, **x.options), whole[:rows])
    others = torch.cat([poisoned((2, inputs), dtype), x.x[:1], poisoned((1, inputs), dtype)])
    assert torch.equal(qmatmul(others, qweight, **x.options)[2:3], whole[:1])


def test_spans_that_depend_on_the_number_of_rows_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    x, qweight = make_inputs(QuantizedCase("", 66, 34, 1088))
    many = qmatmul(x.x, qweight)
    assert torch.equal(qmatmul(x.x[:1], qweight), many[:1])
    monkeypatch.setattr(launch, "span_length", lambda out_features, in_features: 384)
    assert not torch.equal(qmatmul(x.x[:1], qweight), many[:1])


@pytest.mark.parametrize("name", ["one_row", "int8", "group_32_sym_f16", "many_rows"])
def test_a_wrong_scale_group_is_caught(name: str) -> None:
    case = BY_NAME[name]
    x, qweight = make_inputs(case)
    codes, scales, zeros = qweight.to_canonical()
    got = qmatmul(x.x, qweight, **x.options)
    assert_close(got, reference.qmatmul(x.x, qweight, **x.options), **bounds(case.dtype))
    wrong = [(scales.roll(1, -1), zeros)] + ([] if zeros is None else [(scales, zeros.roll(1, -1))])
    for wrong_scales, wrong_zeros in wrong:
        faulty = QuantizedWeight.from_canonical(
            codes, wrong_scales, wrong_zeros, bits=case.bits, group_size=case.group_size
        )
        with pytest.raises(AssertionError, match="max error"):
            assert_close(got, reference.qmatmul(x.x, faulty, **x.options), **bounds(case.dtype))


def test_a_group_size_that_is_not_the_weights_is_caught() -> None:
    x, qweight = make_inputs(BY_NAME["group_128_f16"])
    got = qmatmul(x.x, qweight)
    halved = dataclasses.replace(qweight, group_size=64, params=qweight.params.repeat(2, 1))
    with pytest.raises(AssertionError, match="max error"):
        assert_close(got, reference.qmatmul(x.x, halved), **bounds(F16))


@pytest.mark.parametrize("rows", [2, 66])
def test_only_the_output_is_written(rows: int) -> None:
    x, qweight = make_inputs(QuantizedCase("", rows, 70, 1088, residual=True))
    buffer = poisoned((rows + 2, 80), F32)
    got = qmatmul(x.x, qweight, **x.options, out=buffer[1:-1, 5:75])
    assert torch.equal(got, qmatmul(x.x, qweight, **x.options))
    edges = buffer.clone()
    edges[1:-1, 5:75] = float("nan")
    assert edges.isnan().all()
    stream = x.options["residual"].clone()
    assert torch.equal(qmatmul(x.x, qweight, residual=stream, out=stream), got)


def test_f16_rows_may_give_f32_results() -> None:
    x, qweight = make_inputs(QuantizedCase("", 3, 34, 1088, F16))
    got = qmatmul(x.x, qweight, out=poisoned((3, 34), F32))
    expected = x.x.float() @ qweight.dequantize().half().float().T
    assert_close(got, expected, **bounds(F32))


def test_no_rows() -> None:
    x, qweight = make_inputs(BY_NAME["one_row"])
    assert qmatmul(x.x[:0], qweight).shape == (0, 64)


def test_a_broken_contract_is_a_value_error() -> None:
    x, qweight = make_inputs(BY_NAME["one_row"])
    a = x.x
    experts = dataclasses.replace(qweight, shape=(1, *qweight.shape), words=qweight.words[None])
    bad: list[tuple[Callable[[], Any], str]] = [
        (lambda: qmatmul(a[0], qweight), "shape of x"),
        (lambda: qmatmul(a[:, :64], qweight), "shape of x"),
        (lambda: qmatmul(a.double(), qweight), "dtype of x"),
        (lambda: qmatmul(a, experts), "shape of qweight"),
        (lambda: qmatmul(a, qweight, bias=a[0]), "shape of bias"),
        (lambda: qmatmul(a, qweight, residual=a), "shape of residual"),
        (lambda: qmatmul(a, qweight, out=a), "shape of out"),
        (lambda: qmatmul(a, qweight, out=a[:, :64].half()), "dtype of out"),
    ]
    for call, match in bad:
        with pytest.raises(ValueError, match=match):
            call()
