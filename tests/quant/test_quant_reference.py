"""The reference: golden bytes, and what must hold of any matrix."""

from __future__ import annotations

from fractions import Fraction

import golden
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pyrite.errors import CheckpointError, ShapeError
from pyrite.quant import reference
from pyrite.quant.reference import QuantizedMatrix, fma, integer_matmul, quantize, quantize_activations
from pyrite.quant.scheme import QuantScheme

SCHEMES = golden.schemes()
every_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=list(SCHEMES))


def weights(columns: int) -> st.SearchStrategy[np.ndarray]:
    values = st.floats(width=32, allow_nan=False, allow_infinity=False)
    wide = arrays.arrays(np.float32, (2, columns), elements=values)
    scale = st.sampled_from([1e-9, 1e-4, 0.02, 1.0, 1e5])
    seeds = st.integers(0, 2**32 - 1)
    usual = st.builds(
        lambda seed, s: (np.random.default_rng(seed).standard_normal((2, columns)) * s).astype(np.float32), seeds, scale
    )
    return wide | usual


def squared_errors(matrix: QuantizedMatrix, weight: np.ndarray) -> np.ndarray:
    """f64 of each group, or of all that share a scale."""
    difference = matrix.dequantize().astype(np.float64) - weight
    together = matrix.scheme.group_size * matrix.scheme.groups_per_scale
    return (difference**2).reshape(-1, together).sum(axis=1)


def plain(weight: np.ndarray, scheme: QuantScheme, monkeypatch: pytest.MonkeyPatch) -> QuantizedMatrix:
    with monkeypatch.context() as patch:
        patch.setattr(reference, "FACTORS", dict.fromkeys(reference.FACTORS, (1.0,)))
        patch.setattr(reference, "DIVISORS", reference.DIVISORS[:1])
        patch.setattr(reference, "OFFSETS", reference.OFFSETS[:1])
        return quantize(weight, scheme)


def test_golden_bytes():
    committed, inputs = golden.read(), golden.inputs()
    everything = {**inputs, **golden.outputs(inputs)}
    assert committed.keys() == everything.keys()
    for key, value in everything.items():
        assert value.tobytes() == committed[key], key


def test_the_golden_inputs_reach_every_rule():
    codes = {name: quantize(golden.inputs()["weight"], scheme) for name, scheme in SCHEMES.items()}
    scales = codes["int4_g64_asym"].scales.astype(np.float32)
    assert (scales == reference.SMALLEST_SCALE).any() and (scales == reference.LARGEST_SCALE).any()
    assert ((scales > reference.SMALLEST_SCALE) & (scales < 2.0**-14)).any()  # subnormal in f16
    zeros = codes["int4_g64_asym"].zeros
    assert zeros is not None and (zeros == 0).any() and (zeros == 15).any() and ((zeros > 0) & (zeros < 15)).any()


@every_scheme
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_bounds(scheme: QuantScheme, data: st.DataObject):
    weight = data.draw(weights(2 * scheme.group_size))
    matrix = quantize(weight, scheme)
    assert matrix.codes.dtype == np.uint8 and matrix.codes.max() <= scheme.max_code
    assert matrix.scales.dtype == np.float16 and np.isfinite(matrix.scales).all() and (matrix.scales != 0).all()
    assert (matrix.zeros is None) == scheme.symmetric
    assert (scheme.symmetric and not scheme.shared) or (matrix.scales > 0).all()
    assert (matrix.multiples is None) != scheme.shared
    if matrix.multiples is not None:
        assert np.abs(matrix.multiples).min() >= 1 and np.abs(matrix.multiples).max() <= reference.LARGEST_MULTIPLE
        exact = (
            np.repeat(matrix.scales.astype(np.float64), 4, axis=1)[:, : matrix.multiples.shape[1]] * matrix.multiples
        )
        assert (matrix.group_scales() == exact).all()
    assert matrix.zeros is None or matrix.zeros.max() <= scheme.max_code
    assert np.isfinite(matrix.dequantize()).all()


@every_scheme
def test_no_worse_than_plain_rounding(scheme: QuantScheme, monkeypatch: pytest.MonkeyPatch):
    @settings(max_examples=40, deadline=None)
    @given(weight=weights(scheme.group_size * scheme.groups_per_scale))
    def check(weight: np.ndarray) -> None:
        searched = squared_errors(quantize(weight, scheme), weight)
        rounded = squared_errors(plain(weight, scheme, monkeypatch), weight)
        assert (searched <= rounded * (1 + 1e-5) + 1e-44).all()

    check()


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_weight_of_a_symmetric_group_gets_the_lowest_code(sign: int):
    weight = sign * np.concatenate([np.linspace(-7, 7, 31), [8]]).astype(np.float32)[None]
    matrix = quantize(weight, SCHEMES["int4_g32"])
    assert matrix.codes[0, -1] == 0 and np.sign(matrix.group_scales()[0, 0]) == -sign
    zeros = quantize(np.zeros((1, 32), np.float32), SCHEMES["int4_g32"])
    assert (zeros.scales > 0).all() and (zeros.dequantize() == 0).all()


@every_scheme
def test_better_than_plain_rounding_on_normal_weights(scheme: QuantScheme, monkeypatch: pytest.MonkeyPatch):
    weight = np.random.default_rng(3).standard_normal((64, 256)).astype(np.float32)
    searched = squared_errors(quantize(weight, scheme), weight).sum()
    rounded = squared_errors(plain(weight, scheme, monkeypatch), weight).sum()
    assert searched < 0.96 * rounded


@every_scheme
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_idempotent_where_a_group_spans_its_codes(scheme: QuantScheme, data: st.DataObject):
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    shape, groups = (3, 2 * scheme.group_size), (3, 2)
    codes = rng.integers(0, scheme.max_code + 1, shape).astype(np.uint8)
    codes.reshape(*groups, -1)[:, :, :2] = (0, scheme.max_code)
    if scheme.shared:
        # Seven significant bits, and the largest group has the largest multiple.
        shared = np.ldexp(np.float32(rng.integers(64, 128, (3, 1))), rng.integers(-24, 5, (3, 1))).astype(np.float16)
        multiples = rng.integers(3, 16, groups).astype(np.int8) * rng.choice(np.array([-1, 1], np.int8), groups)
        multiples[:, 0] = 15
        again = quantize(QuantizedMatrix(scheme, codes, shared, None, multiples).dequantize(), scheme)
        assert (again.codes == codes).all() and (again.scales == shared).all() and (again.multiples == multiples).all()
        return
    scales = rng.integers(1, 0x7BFF + 1, groups).astype(np.uint16).view(np.float16)  # every positive finite one
    zeros = None if scheme.symmetric else rng.integers(0, scheme.max_code + 1, groups).astype(np.uint8)
    again = quantize(QuantizedMatrix(scheme, codes, scales, zeros).dequantize(), scheme)
    assert (again.codes == codes).all() and (again.scales == scales).all()
    assert zeros is None or (again.zeros == zeros).all()


@every_scheme
def test_zeros_stay_zero(scheme: QuantScheme):
    weight = np.random.default_rng(4).standard_normal((4, 256)).astype(np.float32)
    weight[:, ::3] = 0.0
    assert (quantize(weight, scheme).dequantize()[:, ::3] == 0.0).all()
    assert (quantize(np.zeros((1, 256), np.float32), scheme).dequantize() == 0.0).all()
    assert (quantize(np.full((1, 256), -0.0, np.float32), scheme).dequantize() == 0.0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(bad: float):
    weight = np.zeros((2, 64), np.float32)
    weight[1, 3] = bad
    with pytest.raises(CheckpointError, match=r"layers\.3\.up: NaN or infinite"):
        quantize(weight, SCHEMES["int4_g64_asym"], name="layers.3.up")


@pytest.mark.parametrize("shape", [(64,), (2, 96), (2, 0), (1, 2, 64)])
def test_shapes_without_whole_groups(shape: tuple[int, ...]):
    with pytest.raises(ShapeError, match="multiple of 64"):
        quantize(np.zeros(shape, np.float32), SCHEMES["int4_g64_asym"])


@settings(max_examples=200, deadline=None)
@given(
    values=arrays.arrays(np.float32, (3, 4), elements=st.floats(-(2.0**60), 2.0**60, width=32)),
)
def test_fma_rounds_once(values: np.ndarray):
    a, b, c = values
    for got, *exact in zip(fma(a, b, c), a, b, c, strict=True):
        x, y, z = (Fraction(float(v)) for v in exact)
        assert got == nearest_f32(x * y + z)


def test_fma_where_two_roundings_fail():
    a, b = np.float32([1 + 2.0**-12]), np.float32([1 + 2.0**-12])  # 1 + 2^-11 + 2^-24, half way between two f32
    assert fma(a, b, np.float32([2.0**-80]))[0] == np.float32(1 + 2.0**-11 + 2.0**-23)
    assert fma(a, b, np.float32([-(2.0**-80)]))[0] == np.float32(1 + 2.0**-11)


def nearest_f32(value: Fraction) -> np.float32:
    """By comparing exact distances; ties to the even one."""
    guess = np.float32(float(value))
    around = [guess, np.nextafter(guess, np.float32(np.inf)), np.nextafter(guess, np.float32(-np.inf))]
    return min(around, key=lambda f: (abs(Fraction(float(f)) - value), int(f.view(np.uint32)) & 1))


@every_scheme
def test_integer_matmul_is_near_the_float_one(scheme: QuantScheme):
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((40, 384)).astype(np.float32)
    x = rng.standard_normal((7, 384)).astype(np.float32)
    bias = rng.standard_normal(40).astype(np.float32)
    matrix = quantize(weight, scheme)
    exact = x.astype(np.float64) @ matrix.dequantize().astype(np.float64).T + bias
    error = integer_matmul(x, matrix, bias) - exact
    assert np.sqrt((error**2).mean() / (exact**2).mean()) < 0.01


@every_scheme
def test_integer_matmul_by_plain_loops(scheme: QuantScheme):
    rng = np.random.default_rng(6)
    weight, x = rng.standard_normal((3, 256)).astype(np.float32), rng.standard_normal((2, 256)).astype(np.float32)
    matrix = quantize(weight, scheme)
    span, zeros = 128 if scheme.shared else min(64, scheme.group_size), matrix.zeros_f32()
    multiples = np.ones(zeros.shape, np.int8) if matrix.multiples is None else matrix.multiples
    for row in range(2):
        for column in range(3):
            total = np.float32(0)
            for start in range(0, 256, span):
                part, group = x[row, start : start + span], start // scheme.group_size
                scale = np.float32(max(abs(float(v)) for v in part)) / np.float32(127)
                q = [int(np.rint(v / scale)) for v in part]
                of_groups = [group + at // scheme.group_size for at in range(span)]
                codes = [int(c) - int(zeros[column, group]) for c in matrix.codes[column, start : start + span]]
                times = [int(multiples[column, one]) for one in of_groups]
                dot = sum(a * b * m for a, b, m in zip(q, codes, times, strict=True))
                factor = scale * np.float32(matrix.scales[column, group // scheme.groups_per_scale])
                total = nearest_f32(dot * Fraction(float(factor)) + Fraction(float(total)))
            assert integer_matmul(x, matrix)[row, column] == total


def test_a_row_may_end_before_its_groups_fill_a_scale():
    rng, scheme = np.random.default_rng(8), SCHEMES["int4_g32x4"]
    weight, x = rng.standard_normal((5, 224)).astype(np.float32), rng.standard_normal((2, 224)).astype(np.float32)
    matrix = quantize(weight, scheme)
    assert matrix.scales.shape == (5, 2) and matrix.multiples is not None and matrix.multiples.shape == (5, 7)
    filled = quantize(np.pad(weight, ((0, 0), (0, 32))), scheme)
    assert (filled.codes[:, :224] == matrix.codes).all() and (filled.scales == matrix.scales).all()
    assert (integer_matmul(np.pad(x, ((0, 0), (0, 32))), filled) == integer_matmul(x, matrix)).all()


def test_shared_scales_beat_plain_rounding_with_more_bits(monkeypatch: pytest.MonkeyPatch):
    weight = np.random.default_rng(9).standard_normal((64, 512)).astype(np.float32)
    shared, each = SCHEMES["int4_g32x4"], SCHEMES["int4_g32"]
    assert shared.packed_bytes(1, 512) * 18 == each.packed_bytes(1, 512) * 17
    searched = squared_errors(quantize(weight, shared), weight).sum()
    rounded = squared_errors(plain(weight, each, monkeypatch), weight).sum()
    best = squared_errors(quantize(weight, each), weight).sum()
    assert searched < 0.95 * rounded and searched < 1.04 * best


def test_rows_do_not_depend_on_each_other():
    rng = np.random.default_rng(7)
    matrix = quantize(rng.standard_normal((16, 256)).astype(np.float32), SCHEMES["int4_g64_asym"])
    x = rng.standard_normal((9, 256)).astype(np.float32)
    alone = np.concatenate([integer_matmul(x[i : i + 1], matrix) for i in range(9)])
    assert (integer_matmul(x, matrix) == alone).all()


@settings(max_examples=100, deadline=None)
@given(x=arrays.arrays(np.float32, (2, 128), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_activations(x: np.ndarray):
    q, scales = quantize_activations(x, 64)
    assert q.dtype == np.int8 and q.min() >= -127
    assert (q.reshape(2, 2, 64)[scales == 0] == 0).all()
    normal = scales >= np.finfo(np.float32).tiny
    back = q.reshape(2, 2, 64) * scales.astype(np.float64)[:, :, None]
    assert (np.abs(back - x.reshape(2, 2, 64))[normal] <= 0.5001 * scales[normal][:, None]).all()


@pytest.mark.parametrize(("x", "bias"), [((2, 64), None), ((128,), None), ((2, 128), (3,))])
def test_shapes_that_do_not_fit(x: tuple[int, ...], bias: tuple[int, ...] | None):
    matrix = quantize(np.ones((4, 128), np.float32), SCHEMES["int8_g64"])
    with pytest.raises(ShapeError, match="does not fit the matrix"):
        integer_matmul(np.ones(x, np.float32), matrix, None if bias is None else np.ones(bias, np.float32))
