"""Fusion changes no bit, and scratch slots never overlap in time."""

from __future__ import annotations

import json

import numpy as np
import pytest
from oracle import prompt
from pyrite.errors import InternalError
from pyrite.models import load_config, record
from pyrite.models.decoder import record_unfused
from pyrite.models.fuse import fuse
from pyrite.models.program import Add, Glu, HeadNorm, KvStore, Linear, Program, Rope
from runners import run_reference
from tiny_models import FAMILIES, tiny
from variants import VARIANTS


@pytest.mark.parametrize(
    "variant", ["llama_default", "llama_attention_bias", "llama_tied", *FAMILIES[1:], "muse_glimmer_bias"]
)
def test_merging_changes_no_bit(variant):
    family, overrides = VARIANTS[variant]
    folder = tiny(family, **overrides)
    config, ids = load_config(folder), prompt(30)
    fused, unfused = record(config), record_unfused(config)
    assert len(fused.ops) < len(unfused.ops)
    chunks = [11, 1, 18]
    assert np.array_equal(run_reference(fused, folder, ids, chunks), run_reference(unfused, folder, ids, chunks))


FUSED_OPS = ("linear_glu", "linear_add", "qk_norm_rope_store", "add_rms_norm")
FUSED_VARIANTS = ["llama_default", "llama_no_bias", "llama_tied", *FAMILIES[1:], "muse_glimmer_bias"]


@pytest.mark.parametrize("variant", FUSED_VARIANTS)
def test_fused_ops_change_no_bit(variant):
    family, overrides = VARIANTS[variant]
    folder = tiny(family, **overrides)
    plain, ids, chunks = record(load_config(folder)), prompt(30), [11, 1, 18]
    expected = run_reference(plain, folder, ids, chunks)
    for names in [(name,) for name in FUSED_OPS] + [FUSED_OPS]:
        fused = fuse(plain, names)
        assert np.array_equal(run_reference(fused, folder, ids, chunks), expected)
        assert {op.op for op in fused.ops} & set(FUSED_OPS) <= set(names)


def count(program: Program, kind: object) -> int:
    return sum(op.op == kind or (isinstance(kind, type) and isinstance(op, kind)) for op in program.ops)


def test_what_is_fused():
    layers = 3
    llama = fuse(record(load_config(tiny("llama"))), FUSED_OPS)
    assert count(llama, "linear_add") == 2 * layers and count(llama, "linear_glu") == layers
    assert count(llama, "qk_norm_rope_store") == layers and count(llama, "add_rms_norm") == 0
    assert not any(count(llama, kind) for kind in (Add, Glu, Rope, HeadNorm, KvStore))
    assert [op.op for op in llama.ops][:5] == ["embed", "rms_norm", "linear", "qk_norm_rope_store", "attention"]
    muse = fuse(record(load_config(tiny("muse_glimmer"))), FUSED_OPS)  # its branches are normed before they are added
    assert count(muse, "linear_add") == 0 and count(muse, "add_rms_norm") == 2 * 7 - 1
    stores = [op for op in muse.ops if op.op == "qk_norm_rope_store"]
    assert len(stores) == 7 and {op.table for op in stores} == {0, None}
    assert all(op.q_norm.scale == 2.1 and op.k_norm.scale == 1.0 for op in stores)


def test_unknown_fused_op():
    with pytest.raises(InternalError, match="no such fused op"):
        fuse(record(load_config(tiny("llama"))), ["linear_everything"])


def matrices(program: Program) -> list[str]:
    return [p.name for p in program.parameters if p.kind == "matrix"]


def test_what_is_merged():
    assert matrices(record(load_config(tiny("muse_glimmer"))))[1:5] == [
        "layers.0.q+k+v+output_gate",
        "layers.0.o",
        "layers.0.gate+up",
        "layers.0.down",
    ]
    biased = record(load_config(tiny("muse_glimmer", attention_bias=True)))
    assert matrices(biased)[1:3] == ["layers.0.q+k+v", "layers.0.output_gate"]
    assert next(p for p in biased.parameters if p.name == "layers.0.q+k+v.bias").shape == ((6 + 2 + 2) * 24,)


def test_merged_parameters_know_their_sources():
    parameter = next(p for p in record(load_config(tiny("qwen3"))).parameters if p.name == "layers.1.q+k+v")
    assert parameter.shape == (240, 96)
    assert parameter.source_shapes() == {
        f"model.layers.1.self_attn.{part}_proj.weight": (rows, 96) for part, rows in (("q", 144), ("k", 48), ("v", 48))
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("make", [record, record_unfused])
def test_every_source_is_used_once(family, make):
    folder = tiny(family)
    program = make(load_config(folder))
    sources = [source for parameter in program.parameters for source in parameter.sources]
    assert len(sources) == len(set(sources))
    named = {getattr(op, field) for op in program.ops for field in ("weight", "bias") if hasattr(op, field)} - {None}
    assert named == {parameter.name for parameter in program.parameters}


def test_a_tied_head_is_the_embedding():
    program = record(load_config(tiny("qwen3", tie_word_embeddings=True)))
    last = [op for op in program.ops if isinstance(op, Linear)][-1]
    assert last.weight == program.ops[0].weight == "embedding"


@pytest.mark.parametrize("fused", [(), FUSED_OPS], ids=["plain", "fused"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_slots_hold_one_live_buffer(variant, fused):
    family, overrides = VARIANTS[variant]
    program = fuse(record(load_config(tiny(family, **overrides))), fused)
    lives: dict[int, list[int]] = {}
    for index, op in enumerate(program.ops):
        for field in (*op.reads, *op.writes):
            lives.setdefault(getattr(op, field).buffer, []).append(index)
    lives[program.logits.buffer].append(len(program.ops))
    assert sorted(lives) == list(range(len(program.buffers)))
    for a, buffer in enumerate(program.buffers):
        slot = program.slots[buffer.slot]
        assert slot.width >= buffer.width and slot.rows == buffer.rows
        for b in range(a):
            if program.buffers[b].slot == buffer.slot:
                assert lives[a][-1] < lives[b][0] or lives[b][-1] < lives[a][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_json_is_plain_and_complete(family):
    program = record(load_config(tiny(family)))
    data = json.loads(program.to_json(), parse_constant=pytest.fail)
    assert len(data["ops"]) == len(program.ops)
    assert data["parameters"][0].keys() == {"name", "kind", "shape", "sources", "quant"}
    assert data["ops"][0] == {
        "op": "embed",
        "weight": "embedding",
        "out": {"buffer": 0, "offset": 0, "width": data["buffers"][0]["width"]},
    }
