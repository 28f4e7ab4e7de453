"""`QuantizedWeight`: the oracle's codes, a re-shuffle that loses nothing, and refusal of what is not a weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pyrite.quant import reference
from pyrite.quant.scheme import QuantScheme
from pyrite_kernels import QuantizedWeight
from pyrite_kernels.quantized import FACTORS, SLOT_BITS, block_inputs

SCHEMES = [(bits, group_size, symmetric) for bits in (4, 8) for group_size in (32, 64, 128) for symmetric in (0, 1)]


def random_canonical(shape: tuple[int, ...], bits: int, group_size: int, symmetric: bool) -> tuple[Any, Any, Any]:
    make = torch.Generator().manual_seed(0)
    per_group = (*shape[:-1], shape[-1] // group_size)
    codes = torch.randint(0, 1 << bits, shape, generator=make, dtype=torch.uint8)
    scales = torch.randn(per_group, generator=make).half()
    zeros = None if symmetric else torch.randint(0, 1 << bits, per_group, generator=make, dtype=torch.uint8)
    return codes, scales, zeros


def test_the_factors_are_the_oracles() -> None:
    assert FACTORS == reference.FACTORS


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), SCHEMES)
def test_quantize_gives_the_bytes_of_the_oracle(bits: int, group_size: int, symmetric: int) -> None:
    make = torch.Generator().manual_seed(bits)
    weight = torch.randn((9, 2 * group_size), generator=make) * torch.logspace(-9, 6, 9)[:, None]
    weight[3] = 0.0
    weight[4] = weight[4].abs()
    got = QuantizedWeight.quantize(weight, bits=bits, group_size=group_size, symmetric=bool(symmetric))
    expected = reference.quantize(weight.numpy(), QuantScheme("test", bits, group_size, bool(symmetric)))
    codes, scales, zeros = got.to_canonical()
    assert np.array_equal(codes.numpy(), expected.codes) and np.array_equal(scales.numpy(), expected.scales)
    assert (zeros is None) == bool(symmetric) and (zeros is None or np.array_equal(zeros.numpy(), expected.zeros))
    assert np.array_equal(got.dequantize().numpy(), expected.dequantize())


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), SCHEMES)
@pytest.mark.parametrize("leading", [(), (3,)], ids=["matrix", "experts"])
def test_the_shuffle_loses_nothing(leading: tuple[int, ...], bits: int, group_size: int, symmetric: int) -> None:
    shape = (*leading, 70, 3 * group_size)
    canonical = random_canonical(shape, bits, group_size, bool(symmetric))
    qweight = QuantizedWeight.from_canonical(*canonical, bits=bits, group_size=group_size)
    blocks = -(-shape[-1] // block_inputs(bits))
    assert qweight.words.shape == (*leading, 2, blocks, 64, 16) and qweight.words.dtype == torch.int32
    assert qweight.params.shape[-1] == 128 and qweight.shape == shape
    for got, expected in zip(qweight.to_canonical(), canonical, strict=True):
        assert got is expected if expected is None else torch.equal(got, expected)
    assert qweight.to("cpu").nbytes == qweight.nbytes == 4 * (qweight.words.numel() + qweight.params.numel())


@pytest.mark.parametrize("bits", [4, 8])
def test_slots_cover_every_bit_of_a_word_once(bits: int) -> None:
    taken = sorted((low + i) % 32 for low in SLOT_BITS[bits] for i in range(bits))
    assert taken == list(range(32))


def test_half_precision_weights_quantize_as_what_they_widen_to() -> None:
    weight = torch.randn((4, 64)).bfloat16()
    options: dict[str, Any] = {"bits": 4, "group_size": 32, "symmetric": False}
    a, b = QuantizedWeight.quantize(weight, **options), QuantizedWeight.quantize(weight.float(), **options)
    assert torch.equal(a.words, b.words) and torch.equal(a.params, b.params)


def test_a_weight_that_cannot_be_quantized_is_a_value_error() -> None:
    weight = torch.ones((2, 128))
    options: dict[str, Any] = {"bits": 4, "group_size": 64, "symmetric": True}
    for value in (float("nan"), float("inf")):
        bad = weight.clone()
        bad[1, 100] = value
        with pytest.raises(ValueError, match="weight: got NaN or infinity"):
            QuantizedWeight.quantize(bad, **options)
    for change, match in (
        ({"bits": 3}, "bits: got 3, expected 4 or 8"),
        ({"group_size": 16}, "group_size: got 16"),
    ):
        with pytest.raises(ValueError, match=match):
            QuantizedWeight.quantize(weight, **(options | change))
    for x, match in (
        (weight[0], "shape of weight"),
        (weight[:0], "shape of weight"),
        (weight[:, :96], "in_features of weight: got 96, expected a multiple of 64"),
        (weight.int(), "dtype of weight"),
    ):
        with pytest.raises(ValueError, match=match):
            QuantizedWeight.quantize(x, **options)


def test_a_broken_canonical_form_is_a_value_error() -> None:
    codes, scales, zeros = random_canonical((2, 128), 4, 64, False)
    nan = scales.clone()
    nan[1, 1] = float("nan")

    def make(c: Any = codes, s: Any = scales, z: Any = zeros, bits: int = 4) -> Callable[[], Any]:
        return lambda: QuantizedWeight.from_canonical(c, s, z, bits=bits, group_size=64)

    make()()
    for call, match in (
        (make(s=nan), "scales: got NaN or infinity, expected finite numbers"),
        (make(s=scales.float()), "dtype of scales"),
        (make(s=scales[:, :1]), "shape of scales"),
        (make(c=codes[:1]), "shape of scales"),
        (make(c=codes[0]), "shape of codes"),
        (make(c=codes[:, :96]), "in_features of codes"),
        (make(c=codes.int()), "dtype of codes"),
        (make(c=codes + 1), "largest of codes: got 16, expected below 16"),
        (make(z=zeros + 14), "largest of zeros"),
        (make(z=zeros[:, :1]), "shape of zeros"),
        (make(bits=5), "bits: got 5"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
