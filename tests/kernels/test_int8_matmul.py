"""`int8_matmul` against its twin, bit by bit, since sums are exact and what follows has one order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyrite_kernels import int8_matmul, quantize_rows_int8
from pyrite_kernels.int8_matmul import launch, reference
from pyrite_kernels.int8_matmul.cases import CASES, make_inputs
from pyrite_kernels.matmul.cases import ROWS, MatmulCase
from pyrite_kernels.testing import assert_close, device, poisoned

F16, F32 = torch.float16, torch.float32
BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_twin_has_the_same_bits(case: MatmulCase) -> None:
    x = make_inputs(case)
    out = poisoned((case.rows, case.out_features), case.dtype)
    assert int8_matmul(*x.operands, **x.options, out=out) is out
    assert torch.equal(out, reference.int8_matmul(*x.operands, **x.options))


def test_the_largest_sums_are_exact() -> None:
    x = torch.full((2, 4096), -128, dtype=torch.int8, device=device())
    weight = torch.full((3, 4096), -128, dtype=torch.int8, device=device())
    x[1, 7] = -127
    one = torch.ones(3, device=device())
    for rows in (x, x.repeat(33, 1)):
        got = int8_matmul(rows, one[:1].repeat(len(rows)), weight, one, out_dtype=F32)
        assert got[0, 0] == 2.0**26 and got[1, 2] == 2.0**26 - 128


@pytest.mark.parametrize("inputs", [200, 1056], ids=["one_span", "two_spans"])
def test_a_row_has_the_same_bits_among_any_number_of_rows(inputs: int) -> None:
    x = make_inputs(MatmulCase("", max(ROWS), 34, inputs, bias=True))
    x_q, x_scale, *weight = x.operands
    whole = int8_matmul(x_q, x_scale, *weight, **x.options)
    for rows in ROWS:
        assert torch.equal(int8_matmul(x_q[-rows:], x_scale[-rows:], *weight, **x.options), whole[-rows:])


def test_products_of_quantized_floats() -> None:
    """What the scales are for: the product of the floats that were quantized, within the rounding of 8 bits."""
    make = torch.Generator().manual_seed(0)
    x, w = (torch.randn(shape, generator=make).to(device()) for shape in ((5, 256), (34, 256)))
    got = int8_matmul(*quantize_rows_int8(x), *quantize_rows_int8(w), out_dtype=F32)
    assert_close(got, x @ w.T, max_error=0.05, rms_error=0.012)


@pytest.mark.parametrize("name", ["one_row_two_spans_f16", "odd", "many_rows"])
def test_wrong_scales_are_caught(name: str) -> None:
    case = BY_NAME[name]
    x = make_inputs(case)
    x_q, x_scale, weight_q, weight_scale = x.operands
    got = int8_matmul(*x.operands, **x.options)
    shifted = [
        (x_q, x_scale, weight_q, weight_scale.roll(1)),
        (x_q, weight_scale[:1].expand_as(x_scale), *x.operands[2:]),
    ]
    for wrong in shifted:
        with pytest.raises(AssertionError, match="max error"):
            assert_close(got, reference.int8_matmul(*wrong, **x.options), max_error=4e-3, rms_error=4e-4)


def test_inputs_that_no_span_counts_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    x = make_inputs(BY_NAME["one_row_two_spans_f16"])
    expected = reference.int8_matmul(*x.operands, **x.options)
    for span in (512, 500):  # any cut is as good
        monkeypatch.setattr(launch, "span_length", lambda out_features, in_features, span=span: span)
        assert torch.equal(int8_matmul(*x.operands, **x.options), expected)
    split = launch._split_kernel

    class Shorter:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *arguments, **options: split[grid](*arguments[:-1], 320, **options)

    monkeypatch.setattr(launch, "_split_kernel", Shorter())
    assert not torch.equal(int8_matmul(*x.operands, **x.options), expected)


@pytest.mark.parametrize("rows", [2, 66])
def test_only_the_output_is_written_and_slices_are_taken(rows: int) -> None:
    x = make_inputs(MatmulCase("", rows, 70, 1040, residual=True))
    x_q, x_scale, weight_q, weight_scale = x.operands
    expected = int8_matmul(*x.operands, **x.options)
    x_q = torch.nn.functional.pad(x_q, (3, 2), value=99)[:, 3:-2]
    weight_q = torch.nn.functional.pad(weight_q, (0, 6), value=99)[:, :1040]
    buffer = poisoned((rows + 2, 80), F32)
    got = int8_matmul(x_q, x_scale, weight_q, weight_scale, **x.options, out=buffer[1:-1, 5:75])
    assert torch.equal(got, expected)
    buffer[1:-1, 5:75] = float("nan")
    assert buffer.isnan().all()
    stream = x.options["residual"].clone()
    assert torch.equal(int8_matmul(*x.operands, residual=stream, out=stream), expected)


def test_a_row_with_a_nan_scale_is_nan() -> None:
    x = make_inputs(MatmulCase("", 3, 34, 64))
    x.operands[1][1] = float("nan")
    got = int8_matmul(*x.operands, out_dtype=F32)
    assert got[1].isnan().all() and not got[::2].isnan().any()


def test_no_rows() -> None:
    x_q, x_scale, *weight = make_inputs(BY_NAME["one_row"]).operands
    assert int8_matmul(x_q[:0], x_scale[:0], *weight, out_dtype=F16).shape == (0, 64)


def test_a_broken_contract_is_a_value_error() -> None:
    a, s, w, t = make_inputs(MatmulCase("", 2, 8, 16)).operands
    wide = torch.zeros((1, 1 << 17), dtype=torch.int8, device=device())
    out = torch.zeros((2, 8), device=device())
    bad: list[tuple[Callable[[], Any], str]] = [
        (lambda: int8_matmul(a, s, w, t), "out_dtype: got None"),
        (lambda: int8_matmul(a, s, w, t, out_dtype=torch.int32), "dtype of out"),
        (lambda: int8_matmul(a, s, w, t, out_dtype=F16, out=out), "out_dtype: got torch.float16"),
        (lambda: int8_matmul(a[0], s, w, t, out_dtype=F32), "shape of x_q"),
        (lambda: int8_matmul(a[:, :8], s, w, t, out_dtype=F32), "shape of x_q"),
        (lambda: int8_matmul(a, s, w[0], t, out_dtype=F32), "shape of weight_q"),
        (lambda: int8_matmul(a.float(), s, w, t, out_dtype=F32), "dtype of x_q"),
        (lambda: int8_matmul(a, s, w.T.contiguous().T, t, out_dtype=F32), "last stride of weight_q"),
        (lambda: int8_matmul(a, s[:1], w, t, out_dtype=F32), "shape of x_scale"),
        (lambda: int8_matmul(a, s, w, t.double(), out_dtype=F32), "dtype of weight_scale"),
        (lambda: int8_matmul(wide, s[:1], wide, t[:1], out_dtype=F32), "in_features: got 131072"),
        (lambda: int8_matmul(a, s, w, t, bias=s, out_dtype=F32), "shape of bias"),
        (lambda: int8_matmul(a, s, w, t, residual=out[:1], out_dtype=F32), "shape of residual"),
        (lambda: int8_matmul(a, s, w, t, out=out.T.contiguous().T), "last stride of out"),
    ]
    for call, match in bad:
        with pytest.raises(ValueError, match=match):
            call()
