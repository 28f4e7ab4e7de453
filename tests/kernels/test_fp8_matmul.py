"""`fp8_matmul` against its twin, a row's bits over numbers of rows, every code, and wrong scales of blocks.

The interpreter has no e4m3: there the kernels run as on sm_80, with f16 operands of the same values. What bits show
there is said in `test_matmul.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyrite_kernels import fp8_matmul, quantize_rows_fp8
from pyrite_kernels.aot import ARCHS
from pyrite_kernels.attention_launch import FP8
from pyrite_kernels.fp8_matmul import launch, reference
from pyrite_kernels.fp8_matmul.cases import CASES, Fp8Case, make_inputs, quantize_blocks
from pyrite_kernels.matmul.cases import ROWS
from pyrite_kernels.testing import assert_close, device, poisoned

F16, F32 = torch.float16, torch.float32
BY_NAME = {case.name: case for case in CASES}


def bounds(dtype: torch.dtype) -> dict[str, float]:
    """f32 differs by the order of sums; f16 by the rounding of the output."""
    return {"max_error": 2e-5, "rms_error": 2e-6} if dtype == F32 else {"max_error": 4e-3, "rms_error": 4e-4}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_parity(case: Fp8Case) -> None:
    x = make_inputs(case)
    out = poisoned((case.rows, case.out_features), case.dtype)
    assert fp8_matmul(*x.operands, **x.options, out=out) is out
    assert_close(out, reference.fp8_matmul(*x.operands, **x.options), **bounds(case.dtype))


def test_every_code_is_decoded_exactly() -> None:
    codes = torch.arange(256, dtype=torch.uint8, device=device())
    codes = codes[(codes & 0x7F) != 0x7F].view(FP8)  # without the two NaN
    weight = codes[None].repeat(2, 1)
    ones = torch.ones(254, device=device())
    rows = torch.eye(254, device=device()).to(FP8)
    assert torch.equal(fp8_matmul(rows, ones, weight, ones[:2], out_dtype=F32)[:, 0], codes.float())
    assert torch.equal(fp8_matmul(weight, ones[:2], rows, ones, out_dtype=F32)[1], codes.float())


@pytest.mark.parametrize("blockwise", [False, True], ids=["channels", "blocks"])
@pytest.mark.parametrize("inputs", [256, 1152], ids=["one_span", "two_spans"])
def test_a_row_has_the_same_bits_among_any_number_of_rows(inputs: int, blockwise: bool) -> None:
    x = make_inputs(Fp8Case("", max(ROWS), 34, inputs, bias=True, blockwise=blockwise))
    x_q, x_scale, *weight = x.operands
    whole = fp8_matmul(x_q, x_scale, *weight, **x.options)
    for rows in ROWS:
        assert torch.equal(fp8_matmul(x_q[-rows:], x_scale[-rows:], *weight, **x.options), whole[-rows:])
    x_scale[0] = x_scale[2:] = float("nan")
    assert torch.equal(fp8_matmul(x_q[:3], x_scale[:3], *weight, **x.options)[1], whole[1])


def test_spans_that_depend_on_the_number_of_rows_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    x_q, x_scale, *weight = make_inputs(Fp8Case("", 66, 34, 1152)).operands
    many = fp8_matmul(x_q, x_scale, *weight, out_dtype=F32)
    assert torch.equal(fp8_matmul(x_q[:1], x_scale[:1], *weight, out_dtype=F32), many[:1])
    monkeypatch.setattr(launch, "span_length", lambda out_features, in_features: 384)
    assert not torch.equal(fp8_matmul(x_q[:1], x_scale[:1], *weight, out_dtype=F32), many[:1])


@pytest.mark.parametrize("name", ["odd", "many_rows", "one_row_two_spans_f16"])
def test_wrong_scales_of_channels_are_caught(name: str) -> None:
    case = BY_NAME[name]
    x = make_inputs(case)
    x_q, x_scale, weight_q, weight_scale = x.operands
    got = fp8_matmul(*x.operands, **x.options)
    wrong = [(x_q, x_scale, weight_q, weight_scale.roll(1)), (x_q, x_scale * 1.1, weight_q, weight_scale)]
    for operands in wrong:
        with pytest.raises(AssertionError, match="max error"):
            assert_close(got, reference.fp8_matmul(*operands, **x.options), **bounds(case.dtype))


@pytest.mark.parametrize("name", ["blocks_one_row", "blocks_two_spans_f16", "blocks_many_rows"])
def test_a_wrong_scale_of_a_block_is_caught(name: str) -> None:
    case = BY_NAME[name]
    x = make_inputs(case)
    x_q, x_scale, weight_q, weight_scale = x.operands
    got = fp8_matmul(*x.operands, **x.options)
    assert_close(got, reference.fp8_matmul(*x.operands, **x.options), **bounds(case.dtype))
    wrong = [
        (x_q, x_scale.roll(1, 1), weight_q, weight_scale),
        (x_q, x_scale, weight_q, weight_scale.roll(1, 1)),
        (x_q, x_scale, weight_q, weight_scale.roll(1, 0)),
    ]
    for operands in wrong:
        with pytest.raises(AssertionError, match="max error"):
            assert_close(got, reference.fp8_matmul(*operands, **x.options), **bounds(case.dtype))


@pytest.mark.parametrize("rows", [2, 66])
def test_a_launch_that_takes_the_next_scales_is_caught(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own offsets: a stride of scales that is off by one."""
    x = make_inputs(Fp8Case("", rows, 140, 384, blockwise=True))
    expected = reference.fp8_matmul(*x.operands, **x.options)
    assert_close(fp8_matmul(*x.operands, **x.options), expected, **bounds(F32))
    tiled = launch._tiled_kernel

    class Shifted:
        def __init__(self, place: int) -> None:
            self.place = place

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def run(*arguments: Any, **options: Any) -> None:
                moved = list(arguments)
                moved[self.place] -= 1
                tiled[grid](*moved, **options)

            return run

    for place in (11, 13):  # stride_xs, stride_ws
        assert tiled.arg_names[place] in ("stride_xs", "stride_ws")
        monkeypatch.setattr(launch, "_tiled_kernel", Shifted(place))
        with pytest.raises(AssertionError, match="max error"):
            assert_close(fp8_matmul(*x.operands, **x.options), expected, **bounds(F32))


@pytest.mark.parametrize("blockwise", [False, True], ids=["channels", "blocks"])
def test_products_of_quantized_floats(blockwise: bool) -> None:
    """What the scales are for: the product of the floats that were quantized, within the rounding of 4 bits."""
    make = torch.Generator().manual_seed(0)
    x, w = (torch.randn(shape, generator=make).to(device()) for shape in ((5, 256), (34, 256)))
    rows = quantize_rows_fp8(x, group_size=128 if blockwise else None)
    weight = quantize_blocks(w) if blockwise else quantize_rows_fp8(w)
    assert_close(fp8_matmul(*rows, *weight, out_dtype=F32), x @ w.T, max_error=0.2, rms_error=0.05)


@pytest.mark.parametrize("blockwise", [False, True], ids=["channels", "blocks"])
@pytest.mark.parametrize("rows", [2, 66])
def test_only_the_output_is_written_and_slices_are_taken(rows: int, blockwise: bool) -> None:
    x = make_inputs(Fp8Case("", rows, 140, 1024, residual=True, blockwise=blockwise))
    x_q, x_scale, weight_q, weight_scale = x.operands
    expected = fp8_matmul(*x.operands, **x.options)
    nan = torch.full((1,), 0x7F, dtype=torch.uint8, device=device()).view(FP8)
    x_q = torch.cat([nan.expand(rows, 3), x_q, nan.expand(rows, 2)], 1)[:, 3:-2]
    weight_q = torch.cat([weight_q, nan.expand(140, 6)], 1)[:, :1024]
    if blockwise:
        x_scale = torch.nn.functional.pad(x_scale, (1, 2), value=float("nan"))[:, 1:-2]
        weight_scale = torch.nn.functional.pad(weight_scale, (1, 3), value=float("nan"))[:, 1:-3]
    buffer = poisoned((rows + 2, 150), F32)
    got = fp8_matmul(x_q, x_scale, weight_q, weight_scale, **x.options, out=buffer[1:-1, 5:145])
    assert torch.equal(got, expected)
    buffer[1:-1, 5:145] = float("nan")
    assert buffer.isnan().all()
    stream = x.options["residual"].clone()
    assert torch.equal(fp8_matmul(*x.operands, residual=stream, out=stream), expected)


@pytest.mark.parametrize("arch", [*ARCHS, "interpreter"])
def test_tiles_share_the_scales_of_their_weight_rows(arch: str) -> None:
    configs = [launch.stream_config(arch, rows) for rows in (1, 17, 64)]
    for one_span in (False, True):
        for blockwise in (False, True):
            configs += launch.tile_configs(arch, one_span, blockwise)
    for config in configs:
        assert config.block_n in (64, 128) and config.block_k == launch.FP8_BLOCK


def test_no_rows() -> None:
    x_q, x_scale, *weight = make_inputs(BY_NAME["blocks_one_row"]).operands
    assert fp8_matmul(x_q[:0], x_scale[:0], *weight, out_dtype=F16).shape == (0, 200)


def test_a_broken_contract_is_a_value_error() -> None:
    a, s, w, t = make_inputs(Fp8Case("", 2, 8, 16)).operands
    b, u, v, r = make_inputs(Fp8Case("", 2, 130, 256, blockwise=True)).operands
    out = torch.zeros((2, 8), device=device())
    bad: list[tuple[Callable[[], Any], str]] = [
        (lambda: fp8_matmul(a, s, w, t), "out_dtype: got None"),
        (lambda: fp8_matmul(a, s, w, t, out_dtype=FP8), "dtype of out"),
        (lambda: fp8_matmul(a[:, :8], s, w, t, out_dtype=F32), "shape of x_q"),
        (lambda: fp8_matmul(a.view(torch.int8), s, w, t, out_dtype=F32), "dtype of x_q"),
        (lambda: fp8_matmul(a, s, w.to(torch.float8_e5m2), t, out_dtype=F32), "dtype of weight_q"),
        (lambda: fp8_matmul(a, s[:1], w, t, out_dtype=F32), "shape of x_scale"),
        (lambda: fp8_matmul(a, s, w, t.half(), out_dtype=F32), "dtype of weight_scale"),
        (lambda: fp8_matmul(b, s, v, r, out_dtype=F32), "shape of x_scale"),
        (lambda: fp8_matmul(b, u, v, r[:1], out_dtype=F32), "shape of weight_scale"),
        (lambda: fp8_matmul(a, u, w, r, out_dtype=F32), "in_features: got 16, expected a multiple of 128"),
        (lambda: fp8_matmul(b, u.T.contiguous().T, v, r, out_dtype=F32), "last stride of x_scale"),
        (lambda: fp8_matmul(a, s, w, t, bias=s, out_dtype=F32), "shape of bias"),
        (lambda: fp8_matmul(a, s, w, t, residual=out[:1], out_dtype=F32), "shape of residual"),
        (lambda: fp8_matmul(a, s, w, t, out=out[:, :4]), "shape of out"),
    ]
    for call, match in bad:
        with pytest.raises(ValueError, match=match):
            call()
