"""`matmul` and `matmul_glu` against their twins, a row's bits over numbers of rows, and what a wrong order would show.

Triton's interpreter multiplies with numpy, so bits here show that both forms cut K in the same places and add in the
same order; that a GPU's matrix instruction does not mind the width of a tile, only a GPU can show. That both forms use
the same instruction is checked when they are compiled ahead of time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyrite_kernels import matmul, matmul_glu
from pyrite_kernels.aot import ARCHS
from pyrite_kernels.matmul import launch, reference
from pyrite_kernels.matmul.cases import CASES, GLU_CASES, ROWS, MatmulCase, make_inputs
from pyrite_kernels.testing import assert_close, device, poisoned

F16, F32 = torch.float16, torch.float32


def bounds(dtype: torch.dtype) -> dict[str, float]:
    """f32 differs by the order of sums; f16 by the rounding of the output."""
    return {"max_error": 2e-5, "rms_error": 2e-6} if dtype == F32 else {"max_error": 4e-3, "rms_error": 4e-4}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_parity(case: MatmulCase) -> None:
    x = make_inputs(case)
    out = poisoned((case.rows, case.out_features), case.dtype)
    got = matmul(x.x, x.weight, **x.options, out=out)
    assert got is out
    assert_close(got, reference.matmul(x.x, x.weight, **x.options), **bounds(case.dtype))


@pytest.mark.parametrize("case", GLU_CASES, ids=lambda case: case.name)
def test_glu_parity(case: MatmulCase) -> None:
    x = make_inputs(case)
    got = matmul_glu(x.x, x.weight, **x.options, out=poisoned((case.rows, case.out_features // 2), case.dtype))
    assert_close(got, reference.matmul_glu(x.x, x.weight, **x.options), **bounds(case.dtype))


@pytest.mark.parametrize("dtype", [F32, F16], ids=["f32", "f16"])
@pytest.mark.parametrize("inputs", [200, 1056], ids=["one_span", "two_spans"])
@pytest.mark.parametrize("op", [matmul, matmul_glu])
def test_a_row_has_the_same_bits_among_any_number_of_rows(op: Callable[..., Any], inputs: int, dtype: Any) -> None:
    x = make_inputs(MatmulCase("", max(ROWS), 34, inputs, dtype, bias=True))
    whole = op(x.x, x.weight, **x.options)
    for rows in ROWS:
        assert torch.equal(op(x.x[:rows], x.weight, **x.options), whole[:rows])
        assert torch.equal(op(x.x[-rows:], x.weight, **x.options), whole[-rows:])
    others = torch.cat([poisoned((2, inputs), dtype), x.x[:1], poisoned((1, inputs), dtype)])
    assert torch.equal(op(others, x.weight, **x.options)[2:3], whole[:1])


def test_spans_that_depend_on_the_number_of_rows_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    x = make_inputs(MatmulCase("", 70, 34, 1056))
    many = matmul(x.x, x.weight)
    assert torch.equal(matmul(x.x[:1], x.weight), many[:1])
    monkeypatch.setattr(launch, "span_length", lambda out_features, in_features: 384)
    assert not torch.equal(matmul(x.x[:1], x.weight), many[:1])


def test_spans_are_a_matter_of_the_weight_alone() -> None:
    assert launch.span_length(28672, 4096) == 4096  # wide: enough tiles
    assert launch.span_length(4096, 4096) == 1024
    assert launch.span_length(4096, 14336) == 3584
    assert launch.span_length(64, 1100) == 640  # a multiple of 128
    assert launch.span_length(64, 1023) >= 1023


@pytest.mark.parametrize("arch", [*ARCHS, "interpreter"])
def test_both_forms_have_weight_tiles_of_whole_instructions(arch: str) -> None:
    for itemsize in (2, 4):
        configs = [launch.stream_config(arch, itemsize, rows) for rows in (1, 17, 64)]
        for glu in (False, True):
            for one_span in (False, True):
                configs += launch.tile_configs(arch, itemsize, one_span, glu)
        for config in configs:
            assert config.block_n % 64 == 0 and launch.SPAN_ALIGN % config.block_k == 0


def test_only_the_output_is_written() -> None:
    for rows in (3, 66):
        x = make_inputs(MatmulCase("", rows, 70, 1040, residual=True))
        buffer = poisoned((rows + 2, 80), F32)
        got = matmul(x.x, x.weight, **x.options, out=buffer[1:-1, 5:75])
        assert torch.equal(got, matmul(x.x, x.weight, **x.options))
        edges = buffer.clone()
        edges[1:-1, 5:75] = float("nan")
        assert edges.isnan().all()


def test_the_residual_may_be_the_output_and_inputs_may_be_slices() -> None:
    for rows in (2, 66):
        x = make_inputs(MatmulCase("", rows, 70, 200, F16, residual=True))
        expected = matmul(x.x, x.weight, **x.options)
        wide = torch.nn.functional.pad(x.x, (3, 2), value=float("nan"))[:, 3:-2]
        weight = torch.nn.functional.pad(x.weight, (0, 6), value=float("nan"))[:, :200]
        stream = x.options["residual"].clone()
        assert torch.equal(matmul(wide, weight, residual=stream, out=stream), expected)


@pytest.mark.parametrize("rows", [2, 66])
def test_f16_rows_may_give_f32_results(rows: int) -> None:
    x = make_inputs(MatmulCase("", rows, 34, 1040, F16))
    got = matmul(x.x, x.weight, out=poisoned((rows, 34), F32))
    assert_close(got, reference.matmul(x.x.float(), x.weight.float()), **bounds(F32))


def test_no_rows() -> None:
    weight = torch.zeros((8, 16), device=device())
    assert matmul(weight[:0], weight).shape == (0, 8)
    assert matmul_glu(weight[:0], weight).shape == (0, 4)


def test_a_broken_contract_is_a_value_error() -> None:
    x = make_inputs(MatmulCase("", 2, 8, 16))
    a, w = x.x, x.weight
    bad: list[tuple[Callable[[], Any], str]] = [
        (lambda: matmul(a[0], w), "shape of x"),
        (lambda: matmul(a[:, :8], w), "shape of x"),
        (lambda: matmul(a[:, :0], w[:, :0]), "shape of x"),
        (lambda: matmul(a, w[0]), "shape of weight"),
        (lambda: matmul(a.half(), w), "dtype of weight: got torch.float32, expected torch.float16"),
        (lambda: matmul(a.double(), w.double()), "dtype of x"),
        (lambda: matmul(a.repeat(1, 2)[:, ::2], w), "last stride of x"),
        (lambda: matmul(a, w.T.contiguous().T), "last stride of weight"),
        (lambda: matmul(a, w, bias=a[0]), "shape of bias"),
        (lambda: matmul(a, w, bias=a[0, :8].int()), "dtype of bias"),
        (lambda: matmul(a, w, residual=a), "shape of residual"),
        (lambda: matmul(a, w, residual=a[:, :8].int()), "dtype of residual"),
        (lambda: matmul(a, w, out=a), "shape of out"),
        (lambda: matmul(a, w, out=a[:, :8].half()), "dtype of out"),
        (lambda: matmul_glu(a, w[:7]), "rows of weight_gate_up"),
        (lambda: matmul_glu(a, w, activation="relu"), "activation"),
    ]
    for call, match in bad:
        with pytest.raises(ValueError, match=match):
            call()
