"""A checkpoint must hold what the program needs and nothing else; FAULTS 24 to 27 on the level of tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pyrite.errors import CheckpointError
from pyrite.models import load_config, record
from pyrite.weights.mapping import check_tensors
from pyrite.weights.reader import Weights
from safetensors.torch import load_file
from tiny_models import FAMILIES, SafetensorsSource, tiny

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


class Edited:
    """A tiny checkpoint whose headers and bytes a test changes."""

    def __init__(self, family: str, **overrides) -> None:
        folder = tiny(family, **overrides)
        self.config = load_config(folder)
        self.source = SafetensorsSource(folder)
        self.entries = self.source.tensors()
        self.bytes: dict[str, bytes] = {}

    def tensors(self):
        return self.entries

    def read(self, name):
        return self.bytes[name] if name in self.bytes else self.source.read(name)

    def check(self):
        family = self.config.family
        tied = (family.head, family.embedding) if self.config.tie_word_embeddings else None
        return check_tensors(record(self.config), self, skippable=family.skippable_tensors, tied=tied)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_saves_is_accepted(family, tied):
    report = Edited(family, tie_word_embeddings=tied).check()
    assert (HEAD in report.used) is not tied
    assert bool(report.skipped) is (family == "muse_glimmer")
    assert all(name.startswith("model.vision_") for name in report.skipped)


def test_missing_tensors_are_listed_up_to_ten():
    edited = Edited("llama")
    names = [name for name in edited.entries if ".layers." in name]
    for name in names:
        del edited.entries[name]
    with pytest.raises(
        CheckpointError, match=rf"{len(names)} tensors are missing.* and {len(names) - 10} more"
    ) as caught:
        edited.check()
    assert str(caught.value).count("model.layers.") == 11  # ten in the list, one as the field


def test_one_missing_tensor():
    edited = Edited("qwen3")
    del edited.entries["model.layers.1.self_attn.k_norm.weight"]
    with pytest.raises(CheckpointError, match=r"^model.layers.1.self_attn.k_norm.weight: tensor is missing"):
        edited.check()


@pytest.mark.parametrize(
    "name",
    ["model.layers.3.mlp.up_proj.weight", "model.layers.0.self_attn.q_norm.weight", "score.weight", "a\nb" * 1000],
)
def test_unexpected_tensor(name):
    edited = Edited("llama")
    edited.entries[name] = ("F32", (4,))
    with pytest.raises(CheckpointError, match="unexpected tensor") as caught:
        edited.check()
    assert "\n" not in str(caught.value).split("\nhint")[0] and len(str(caught.value)) < 600


def test_a_bias_that_the_config_denies_is_unexpected():
    edited = Edited("llama", attention_bias=False)
    edited.entries["model.layers.0.self_attn.q_proj.bias"] = ("F32", (168,))
    with pytest.raises(CheckpointError, match="unexpected"):
        edited.check()


def test_rotary_buffers_of_old_checkpoints_are_skipped():
    edited = Edited("llama")
    edited.entries["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("F32", (12,))
    assert edited.check().skipped == ("model.layers.0.self_attn.rotary_emb.inv_freq",)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (EMBEDDING, (332, 112)),
        (EMBEDDING, (112, 333)),
        ("model.layers.0.self_attn.q_proj.weight", (144, 112)),
        ("model.layers.0.self_attn.k_proj.weight", (48, 112)),
        ("model.layers.2.mlp.down_proj.weight", (80, 112)),
        ("model.layers.2.mlp.down_proj.bias", (112, 1)),
        ("model.norm.weight", ()),
    ],
)
def test_wrong_shape(name, shape):
    edited = Edited("llama")
    expected = list(edited.entries[name][1])
    edited.entries[name] = ("F32", shape)
    with pytest.raises(CheckpointError) as caught:
        edited.check()
    assert caught.value.field == name
    assert (caught.value.got, caught.value.expected) == (list(shape), expected)


def test_shapes_that_fit_only_in_sum_are_refused():
    edited = Edited("qwen3")
    for part, rows in (("q", 143), ("k", 49)):
        edited.entries[f"model.layers.0.self_attn.{part}_proj.weight"] = ("F32", (rows, 96))
    with pytest.raises(CheckpointError, match="wrong shape"):
        edited.check()


@pytest.mark.parametrize("dtype", ["I64", "U8", "BOOL", "F64", "F8_E4M3"])
def test_wrong_dtype(dtype):
    edited = Edited("llama")
    name = "model.layers.1.mlp.gate_proj.weight"
    edited.entries[name] = (dtype, edited.entries[name][1])
    with pytest.raises(CheckpointError, match=f"{name}.*{dtype}"):
        edited.check()


def test_one_matrix_has_one_dtype():
    edited = Edited("llama")
    name = "model.layers.1.mlp.up_proj.weight"
    edited.entries[name] = ("BF16", edited.entries[name][1])
    with pytest.raises(CheckpointError, match="another dtype"):
        edited.check()


def test_a_tied_head_may_be_a_copy_and_nothing_else():
    edited = Edited("qwen3", tie_word_embeddings=True)
    data = edited.read(EMBEDDING)
    edited.entries[HEAD], edited.bytes[HEAD] = edited.entries[EMBEDDING], data
    assert edited.check().skipped == (HEAD,)
    edited.bytes[HEAD] = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(CheckpointError, match="ties the head"):
        edited.check()
    edited.entries[HEAD] = ("F32", (332, 96))
    with pytest.raises(CheckpointError, match="ties the head"):
        edited.check()


def test_an_untied_model_needs_its_head():
    edited = Edited("llama")
    del edited.entries[HEAD]
    with pytest.raises(CheckpointError, match=r"lm_head.weight: tensor is missing"):
        edited.check()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_are_read_as_f32(dtype):
    folder = tiny("llama", dtype=dtype)
    weights = Weights(SafetensorsSource(folder))
    for name, tensor in load_file(folder / "model.safetensors").items():
        array = weights.float32(name)
        assert array.dtype == np.float32 and array.flags.writeable
        assert torch.equal(torch.from_numpy(array), tensor.float())
    with pytest.raises(CheckpointError, match="missing"):
        weights.float32("nothing")


def test_integers_are_not_weights():
    edited = Edited("llama")
    edited.entries["ids"] = ("I64", (2,))
    edited.bytes["ids"] = bytes(16)
    with pytest.raises(CheckpointError, match="I64"):
        Weights(edited).float32("ids")
