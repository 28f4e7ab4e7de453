"""Which matrices get a scheme, and what reaches the Rust executor."""

from __future__ import annotations

import dataclasses
import json

import pytest
from pyrite.errors import InternalError
from pyrite.models import load_config, record, record_unfused
from pyrite.models.fuse import fuse, merge_linears
from pyrite.models.quantize import assign_schemes, float_matrices
from pyrite.quant.schemes import QUANTIZATIONS, quantization
from quantizable import QUANTIZABLE, quantizable
from tiny_models import tiny

FUSED = ("linear_glu", "linear_add", "qk_norm_rope_store", "add_rms_norm")


def quantized(name: str, scheme: str = "int4"):
    return assign_schemes(record(load_config(quantizable(name))), quantization(scheme))


@pytest.mark.parametrize("name", QUANTIZABLE)
def test_layers_and_head_have_their_schemes(name):
    program, four = quantized(name), quantization("int4")
    tied = name.endswith("tied")
    for parameter in program.parameters:
        if parameter.kind == "vector" or ("down" in parameter.name and name.endswith("uneven")):
            assert parameter.quant is None
        elif parameter.name == "head" or (parameter.name == "embedding" and tied):
            assert parameter.quant == four.head
        elif parameter.name == "embedding":
            assert parameter.quant is None
        else:
            assert parameter.quant == four.layers, parameter.name
    assert any(parameter.name == "head" for parameter in program.parameters) != tied


def test_merged_matrices_have_one_scheme():
    by_name = {parameter.name: parameter for parameter in quantized("muse_glimmer").parameters}
    merged = by_name["layers.0.q+k+v+output_gate"]
    assert len(merged.sources) == 4 and merged.quant is not None
    assert by_name["layers.0.gate+up"].quant is not None


def test_head4_quantizes_the_head_like_the_layers():
    by_name = {parameter.name: parameter for parameter in quantized("llama", "int4_head4").parameters}
    assert by_name["head"].quant == by_name["layers.0.o"].quant == quantization("int4").layers


@pytest.mark.parametrize("scheme", QUANTIZATIONS)
def test_what_does_not_divide_stays_float(scheme):
    program = assign_schemes(record(load_config(tiny("qwen3"))), quantization(scheme))  # 96, 144 and 80 inputs
    found = quantization(scheme)
    kept = float_matrices(program)
    assert {p.name for p in kept} >= {"layers.0.down", "layers.0.o"}
    assert all(p.shape[1] % (found.head if p.name == "head" else found.layers).group_size for p in kept)
    expected = {f"layers.{i}.{name}" for i in range(3) for name in ("q+k+v", "gate+up")}
    expected = (expected if found.layers.group_size == 32 else set()) | ({"head"} if found.head.fits(96) else set())
    assert {p.name for p in program.parameters if p.quant is not None} == expected


@pytest.mark.parametrize("name", QUANTIZABLE)
def test_fusing_keeps_the_schemes(name):
    program = quantized(name)
    fused = fuse(program, FUSED)
    assert fused.parameters == program.parameters
    assert assign_schemes(fuse(record(load_config(quantizable(name))), FUSED), quantization("int4")) == fused
    assert float_matrices(fused) == float_matrices(program)


def test_schemes_come_after_merging():
    program = assign_schemes(record_unfused(load_config(quantizable("llama"))), quantization("int8"))
    with pytest.raises(InternalError, match="merged before"):
        merge_linears(program)


def test_json_says_how():
    program = quantized("qwen3_tied")
    parameters = json.loads(program.to_json())["parameters"]
    found = {p["name"]: p["quant"] for p in parameters}
    assert found["embedding"] == {"bits": 8, "group_size": 64, "symmetric": True, "groups_per_scale": 1}
    assert found["layers.0.o"] == {"bits": 4, "group_size": 32, "symmetric": True, "groups_per_scale": 4}
    assert found["final_norm"] is None
    assert all(len(p) == len(dataclasses.fields(program.parameters[0])) - 1 for p in parameters)
