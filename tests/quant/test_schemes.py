"""Schemes and their names."""

from __future__ import annotations

import dataclasses

import pytest
from pyrite.errors import ConfigError
from pyrite.quant.scheme import QuantScheme
from pyrite.quant.schemes import QUANTIZATIONS, quantization


@pytest.mark.parametrize(
    ("name", "layers", "head"),
    [
        ("int8", (8, 64, True), (8, 64, True)),
        ("int8_g128", (8, 128, True), (8, 128, True)),
        ("int4", (4, 32, True), (8, 64, True)),
        ("int4_g64", (4, 64, True), (8, 64, True)),
        ("int4_g64_asym", (4, 64, False), (8, 64, True)),
        ("int4_head4", (4, 32, True), (4, 32, True)),
        ("int4_g128_asym_head4", (4, 128, False), (4, 128, False)),
    ],
)
def test_names(name: str, layers: tuple[int, int, bool], head: tuple[int, int, bool]):
    found = quantization(name)
    for scheme, expected in ((found.layers, layers), (found.head, head)):
        assert (scheme.bits, scheme.group_size, scheme.symmetric) == expected


def test_short_names_stand_for_full_ones():
    short = {name: found.name for name, found in QUANTIZATIONS.items() if name != found.name}
    assert short == {"int8": "int8_g64", "int4": "int4_g32x4", "int4_head4": "int4_g32x4_head4"}


def test_every_full_name_is_its_own():
    found = {q.name: q for q in QUANTIZATIONS.values()}
    assert len({(q.layers, q.head) for q in found.values()}) == len(found)
    schemes = [s for q in found.values() for s in (q.layers, q.head)]
    assert len({s.name for s in schemes}) == len({dataclasses.astuple(s)[1:] for s in schemes})


@pytest.mark.parametrize("name", ["int3", "INT4", "", 4, None, ["int4"]])
def test_unknown_names_list_the_known_ones(name: object):
    with pytest.raises(
        ConfigError, match=r"quantization: unknown scheme: got .*, expected int8, .*int4_g128.*"
    ) as error:
        quantization(name)
    assert error.value.field == "quantization"


@pytest.mark.parametrize(
    ("field", "value"),
    [("bits", 3), ("bits", True), ("group_size", 16), ("group_size", 48), ("scale_dtype", "float32"),
     ("groups_per_scale", 4), ("groups_per_scale", True)],
)  # fmt: skip
def test_bad_schemes(field: str, value: object):
    good = {"name": "x", "bits": 4, "group_size": 64, "symmetric": False}
    with pytest.raises(ConfigError, match=field):
        QuantScheme(**{**good, field: value})


def test_only_small_symmetric_groups_of_four_bits_share_a_scale():
    shared = {"name": "x", "bits": 4, "group_size": 32, "symmetric": True, "groups_per_scale": 4}
    assert QuantScheme(**shared).shared
    for field, value in (("bits", 8), ("group_size", 64), ("symmetric", False), ("groups_per_scale", 2)):
        with pytest.raises(ConfigError, match="groups_per_scale"):
            QuantScheme(**{**shared, field: value})


def test_bytes():
    assert quantization("int4").layers.packed_bytes(10, 128) == 10 * (64 + 4)
    assert quantization("int4").layers.packed_bytes(10, 160) == 10 * (80 + 2 * 4)
    assert quantization("int4_g32").layers.packed_bytes(10, 128) == 10 * (64 + 4 * 2)
    assert quantization("int4_g64_asym").layers.packed_bytes(10, 128) == 10 * (64 + 2 * 3)
    assert quantization("int8").layers.packed_bytes(10, 128) == 10 * (128 + 2 * 2)
    assert quantization("int4_g64_asym").layers.to_dict() == {
        "name": "int4_g64_asym", "bits": 4, "group_size": 64, "symmetric": False,
        "groups_per_scale": 1, "scale_dtype": "float16",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="multiple of 64"):
        quantization("int4_g64").layers.packed_bytes(10, 96)
    assert not quantization("int4").layers.fits(0)
