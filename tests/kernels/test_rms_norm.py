"""`rms_norm` and its forms that quantize, against their twins; rows alone, in batches and inside larger tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pyrite_kernels import rms_norm, rms_norm_fp8, rms_norm_int8
from pyrite_kernels.attention_launch import FP8
from pyrite_kernels.rms_norm import reference
from pyrite_kernels.rms_norm.cases import CASES, NormCase
from pyrite_kernels.testing import assert_close, device, interpreted, poisoned

BOUND = {torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def inputs(case: NormCase, seed: int = 0) -> tuple[list[torch.Tensor | None], dict[str, Any]]:
    """x and weight, then the options."""
    if interpreted() and case.dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter cuts off where it should round to bf16")
    make = torch.Generator().manual_seed(seed)
    x, residual = (torch.randn(case.num_rows, case.width, generator=make) for _ in range(2))
    weight = torch.randn(case.width, generator=make) + 1.0 - case.weight_offset
    options: dict[str, Any] = {"eps": 1e-5, "weight_offset": case.weight_offset}
    if case.residual_dtype is not None:
        options["residual"] = residual.to(device(), case.residual_dtype)
    return [
        (3.0 * x).to(device(), case.dtype),
        None if case.weight_dtype is None else weight.to(device(), case.weight_dtype),
    ], options


def copied(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in options.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_twin_agrees(case: NormCase) -> None:
    (x, weight), options = inputs(case)
    expected_options = copied(options)
    expected = reference.rms_norm(x, weight, **expected_options)
    out = poisoned(x.shape, case.dtype)
    assert rms_norm(x, weight, **options, out=out) is out
    assert_close(out, expected, max_error=4 * BOUND[case.dtype], rms_error=BOUND[case.dtype])
    if case.residual_dtype is not None:
        assert torch.equal(options["residual"], expected_options["residual"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_int8_codes_and_scales(case: NormCase) -> None:
    (x, weight), options = inputs(case)
    expected_options = copied(options)
    expected, expected_scale = reference.rms_norm_int8(x, weight, **expected_options)
    codes, scale = rms_norm_int8(x, weight, **options, out=poisoned(x.shape, torch.int8))
    assert codes.dtype == torch.int8 and scale.shape == (case.num_rows,)
    assert_close(scale, expected_scale, max_error=1e-5, rms_error=1e-5)
    off = (codes.int() - expected.int()).abs()  # a value at a tie may fall to either side
    assert off.max() <= 1 and off.float().mean() < 2e-3
    assert codes.abs().amax(dim=1).eq(127).all()
    if case.residual_dtype is not None:
        assert torch.equal(options["residual"], expected_options["residual"])


@pytest.mark.parametrize(
    ("case", "group_size"),
    [pytest.param(c, g, id=f"{c.name}_{g}") for c in CASES for g in (None, 128) if c.width % (g or 1) == 0],
)
def test_fp8_codes_and_scales(case: NormCase, group_size: int | None) -> None:
    (x, weight), options = inputs(case)
    expected, expected_scale = reference.rms_norm_fp8(x, weight, **copied(options), group_size=group_size)
    shape = expected_scale.shape
    codes, scale = rms_norm_fp8(x, weight, **options, group_size=group_size, scale=poisoned(shape, torch.float32))
    assert codes.dtype == FP8
    assert_close(scale, expected_scale, max_error=1e-5, rms_error=1e-5)
    differ = codes.view(torch.uint8) != expected.view(torch.uint8)
    assert differ.float().mean() < 4e-3
    assert_close(codes.float(), expected.float(), max_error=1.0, rms_error=1e-2)


@pytest.mark.parametrize("norm", [rms_norm, rms_norm_int8, rms_norm_fp8])
@pytest.mark.parametrize("case", CASES[2:6], ids=lambda case: case.name)
def test_a_row_is_the_same_alone_and_in_any_batch(case: NormCase, norm: Any) -> None:
    (x, weight), options = inputs(case)
    (other, _), other_options = inputs(case, seed=1)
    alone = {k: v[-1:].clone() if k == "residual" else v for k, v in options.items()}
    beside = {k: torch.cat([other_options[k], v]) if k == "residual" else v for k, v in options.items()}
    whole = norm(torch.cat([other, x]), weight, **beside)
    single = norm(x[-1:], weight, **alone)
    for a, b in zip(
        *((r,) if isinstance(r, torch.Tensor) else r for r in (whole, single)),
        strict=True,
    ):
        assert torch.equal(a[-1:].contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def test_views_of_larger_tensors_and_nothing_written_beside_them() -> None:
    case = CASES[3]
    (x, weight), options = inputs(case)
    expected_options = copied(options)
    expected = reference.rms_norm(x, weight, **expected_options)
    wide = [poisoned((case.num_rows + 2, 3 * case.width), case.dtype) for _ in range(3)]
    inner = [w[1:-1, case.width : 2 * case.width] for w in wide]
    inner[0].copy_(x)
    inner[1].copy_(options["residual"])
    rms_norm(inner[0], weight, **{**options, "residual": inner[1]}, out=inner[2])
    assert torch.equal(inner[1], expected_options["residual"])
    assert_close(inner[2], expected, max_error=1e-2, rms_error=3e-3)
    for w, view in zip(wide, inner, strict=True):
        view.fill_(float("nan"))
        assert w.isnan().all()


def test_in_place() -> None:
    (x, weight), options = inputs(CASES[0])
    expected = reference.rms_norm(x, weight, **options)
    rms_norm(x, weight, **options, out=x)
    assert_close(x, expected, max_error=1e-5, rms_error=1e-6)


def test_zero_and_broken_rows_of_the_forms_that_quantize() -> None:
    x = torch.randn(4, 128).to(device())
    x[0] = 0.0
    x[1, 5] = float("nan")
    x[2, 7] = float("inf")
    for norm in (rms_norm_int8, rms_norm_fp8):
        codes, scale = norm(x, None, eps=1e-6)
        assert scale[0] == 0.0 and not codes[0].float().any()
        assert scale[1].isnan() and scale[2].isnan() and scale[3].isfinite()


def test_no_rows() -> None:
    assert rms_norm(torch.empty(0, 64, device=device()), None, eps=1e-6).shape == (0, 64)


@pytest.mark.parametrize(
    ("match", "change"),
    [
        ("shape of x", {"x": torch.zeros(64)}),
        ("dtype of x", {"x": torch.zeros(2, 64, dtype=torch.float64)}),
        ("last stride of x", {"x": torch.zeros(64, 2).T}),
        ("width: got 16385, expected 1 to 16384", {"x": torch.zeros(1, 16385)}),
        ("shape of weight", {"weight": torch.zeros(63)}),
        ("strides of weight", {"weight": torch.zeros(64, 2)[:, 0]}),
        ("shape of residual", {"residual": torch.zeros(1, 64)}),
        ("eps", {"eps": -1.0}),
        ("shape of out", {"out": torch.zeros(2, 63)}),
    ],
)
def test_a_broken_contract_is_a_value_error(match: str, change: dict[str, Any]) -> None:
    given: dict[str, Any] = {"x": torch.zeros(2, 64), "weight": torch.zeros(64), "eps": 1e-6} | change
    given = {k: v.to(device()) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    with pytest.raises(ValueError, match=match):
        rms_norm(**given)


def test_broken_contracts_of_the_forms_that_quantize() -> None:
    x = torch.zeros(2, 192).to(device())
    with pytest.raises(ValueError, match="width: got 192, expected a multiple of group_size = 128"):
        rms_norm_fp8(x, None, eps=1e-6, group_size=128)
    with pytest.raises(ValueError, match="group_size: got 64"):
        rms_norm_fp8(x, None, eps=1e-6, group_size=64)
    with pytest.raises(ValueError, match="dtype of out"):
        rms_norm_int8(x, None, eps=1e-6, out=x)
    with pytest.raises(ValueError, match="shape of scale"):
        rms_norm_int8(x, None, eps=1e-6, scale=x)
