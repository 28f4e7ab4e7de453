"""`quantize_rows_int8` and `quantize_rows_fp8` against their twins and against the norms that quantize."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pyrite_kernels import quantize_rows_fp8, quantize_rows_int8, rms_norm, rms_norm_fp8, rms_norm_int8
from pyrite_kernels.attention_launch import FP8
from pyrite_kernels.quantize_rows import reference
from pyrite_kernels.quantize_rows.cases import CASES, RowsCase
from pyrite_kernels.testing import assert_close, device, poisoned


def rows_of(case: RowsCase, seed: int = 0) -> torch.Tensor:
    make = torch.Generator().manual_seed(seed)
    return (3.0 * torch.randn(case.num_rows, case.width, generator=make)).to(device(), case.dtype)


def as_bytes(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.uint8)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_int8_codes_and_scales(case: RowsCase) -> None:
    x = rows_of(case)
    out, scale = poisoned(x.shape, torch.int8), poisoned(x.shape[:1], torch.float32)
    assert quantize_rows_int8(x, out=out, scale=scale) == (out, scale)
    expected, expected_scale = reference.quantize_rows_int8(x)
    assert torch.equal(out, expected) and torch.equal(scale, expected_scale)
    assert_close(out * scale[:, None], x.float(), max_error=0.03, rms_error=0.02)


@pytest.mark.parametrize(
    ("case", "group_size"),
    [pytest.param(c, g, id=f"{c.name}_{g}") for c in CASES for g in (None, 128) if c.width % (g or 1) == 0],
)
def test_fp8_codes_and_scales(case: RowsCase, group_size: int | None) -> None:
    x = rows_of(case)
    expected, expected_scale = reference.quantize_rows_fp8(x, group_size=group_size)
    codes, scale = quantize_rows_fp8(
        x, group_size=group_size, scale=poisoned(expected_scale.shape, torch.float32), out=torch.empty_like(expected)
    )
    assert codes.dtype == FP8 and torch.equal(scale, expected_scale)
    assert torch.equal(as_bytes(codes), as_bytes(expected))
    each = scale.repeat_interleave(case.width // (scale.numel() // case.num_rows)).view(x.shape)
    assert_close(codes.float() * each, x.float(), max_error=0.2, rms_error=0.04)


def test_the_format_is_that_of_the_norms() -> None:
    x = torch.randn((3, 256), generator=torch.Generator().manual_seed(2)).to(device())
    y = rms_norm(x, None, eps=1e-6)
    for got, expected in (
        (quantize_rows_int8(y), rms_norm_int8(x, None, eps=1e-6)),
        (quantize_rows_fp8(y), rms_norm_fp8(x, None, eps=1e-6)),
        (quantize_rows_fp8(y, group_size=128), rms_norm_fp8(x, None, eps=1e-6, group_size=128)),
    ):
        assert torch.equal(as_bytes(got[0]), as_bytes(expected[0])) and torch.equal(got[1], expected[1])


@pytest.mark.parametrize("options", [{}, {"group_size": 128}], ids=["rows", "groups"])
def test_a_row_is_the_same_alone_and_nothing_is_written_beside_it(options: dict[str, int]) -> None:
    x = rows_of(RowsCase("", 5, 2304, torch.float16))
    whole, scales = quantize_rows_fp8(x, **options)
    wide = torch.nn.functional.pad(x, (4, 4), value=float("nan"))[:, 4:-4]
    buffer = poisoned((3, 2400), torch.float32).to(FP8)
    got, scale = quantize_rows_fp8(wide[2:3], **options, out=buffer[1:2, 40:2344])
    assert torch.equal(as_bytes(got), as_bytes(whole[2:3])) and torch.equal(scale, scales[2:3])
    edges = buffer.view(torch.uint8).clone()
    edges[1:2, 40:2344] = 0x7F
    assert edges.eq(0x7F).all()


def test_zero_and_broken_rows() -> None:
    x = torch.randn((4, 9216), generator=torch.Generator().manual_seed(3)).to(device())
    x[0] = 0.0
    x[1, 9000] = float("nan")
    x[2, 5] = float("-inf")
    for quantize in (quantize_rows_int8, quantize_rows_fp8):
        codes, scale = quantize(x)
        assert scale[0] == 0.0 and not codes[0].float().any()
        assert scale[1].isnan() and scale[2] == float("inf") and scale[3].isfinite()
        assert (codes[2].float() * scale[2]).isnan().all()


def test_no_rows() -> None:
    codes, scale = quantize_rows_int8(torch.empty((0, 64), device=device()))
    assert codes.shape == (0, 64) and scale.shape == (0,)


@pytest.mark.parametrize(
    ("match", "quantize", "change"),
    [
        ("dtype of x", quantize_rows_int8, {"x": torch.zeros(2, 64, dtype=torch.int32)}),
        ("shape of x", quantize_rows_int8, {"x": torch.zeros(64)}),
        ("last stride of x", quantize_rows_int8, {"x": torch.zeros(64, 2).T}),
        ("dtype of out", quantize_rows_int8, {"out": torch.zeros(2, 192)}),
        ("shape of scale", quantize_rows_int8, {"scale": torch.zeros(2, 1)}),
        ("width: got 192, expected a multiple of group_size = 128", quantize_rows_fp8, {"group_size": 128}),
        ("group_size: got 64", quantize_rows_fp8, {"group_size": 64}),
        ("dtype of out", quantize_rows_fp8, {"out": torch.zeros(2, 192, dtype=torch.int8)}),
    ],
)
def test_a_broken_contract_is_a_value_error(match: str, quantize: Any, change: dict[str, Any]) -> None:
    given: dict[str, Any] = {"x": torch.zeros(2, 192)} | change
    given = {k: v.to(device()) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    with pytest.raises(ValueError, match=match):
        quantize(**given)
