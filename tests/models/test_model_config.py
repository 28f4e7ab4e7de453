"""Config values: what is read, and everything in FAULTS style that must be refused."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyrite.errors import CheckpointError, ConfigError
from pyrite.models import ModelConfig, load_config, record
from tiny_models import FAMILIES, WINDOW, tiny


def hf(family: str, **changes: Any) -> dict:
    """The config.json of a tiny model with text values changed; `...` deletes a key."""
    data = json.loads((tiny(family) / "config.json").read_text())
    text = data["text_config"] if family == "muse_glimmer" else data
    for key, value in changes.items():
        text.pop(key, None)
        if value is not ...:
            text[key] = value
    return data


INTEGERS = [
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "head_dim",
    "max_position_embeddings",
]
BAD_INTEGERS = [0, -1, 2**31, 2**63, 10**9, 1e9, "12", True, math.nan, math.inf, [4], {}, 10**3000]


@pytest.mark.parametrize("value", BAD_INTEGERS, ids=lambda v: repr(v)[:20])
@pytest.mark.parametrize("key", INTEGERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_bad_integers_are_refused(family, key, value):
    data = hf(family, **{key: value})
    started = time.process_time()
    with pytest.raises(ConfigError, match="range") as caught:
        ModelConfig.from_hf(data)
    assert caught.value.field is not None and caught.value.field.endswith(key)
    assert len(str(caught.value)) < 400
    assert time.process_time() - started < 1


@pytest.mark.parametrize("value", BAD_INTEGERS, ids=lambda v: repr(v)[:20])
@pytest.mark.parametrize("family", ["qwen3", "muse_glimmer"])
def test_bad_windows_are_refused(family, value):
    with pytest.raises(ConfigError, match="sliding_window"):
        ModelConfig.from_hf(hf(family, sliding_window=value))


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size"])
@pytest.mark.parametrize("value", [None, ...], ids=["null", "missing"])
def test_required_integers(key, value):
    with pytest.raises(ConfigError, match=key):
        ModelConfig.from_hf(hf("llama", **{key: value}))


def test_absent_head_sizes_follow_from_the_others():
    config = ModelConfig.from_hf(hf("llama", head_dim=None, num_key_value_heads=None))
    assert (config.head_dim, config.num_kv_heads) == (112 // 7, 7)


YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def rope(**values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, **values}}


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "heads not divisible": ("llama", {"num_key_value_heads": 2}, "num_key_value_heads"),
    "more kv heads than heads": ("llama", {"num_key_value_heads": 14}, "num_key_value_heads"),
    "hidden not divisible": ("llama", {"head_dim": None, "hidden_size": 113}, "num_attention_heads"),
    "odd head_dim": ("llama", {"head_dim": 23}, "head_dim"),
    "too wide": ("llama", {"num_attention_heads": 4095, "num_key_value_heads": 1, "head_dim": 1024}, "too wide"),
    "eps negative": ("llama", {"rms_norm_eps": -1e-5}, "rms_norm_eps"),
    "eps NaN": ("llama", {"rms_norm_eps": math.nan}, "rms_norm_eps"),
    "eps text": ("llama", {"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
    "activation": ("llama", {"hidden_act": "gelu"}, "hidden_act"),
    "activation list": ("llama", {"hidden_act": ["silu"]}, "hidden_act"),
    "bias number": ("llama", {"attention_bias": 1}, "attention_bias"),
    "tie text": ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    "quantized": ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    "encoder-decoder": ("llama", {"is_encoder_decoder": True}, "is_encoder_decoder"),
    "partial rotary": ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "eos text": ("llama", {"eos_token_id": "2"}, "eos_token_id"),
    "eos negative": ("llama", {"eos_token_id": [2, -1]}, "eos_token_id"),
    "model type": ("llama", {"model_type": "qwen3"}, "model_type"),
    "rope unknown": ("llama", rope(rope_type="spiral"), "rope_type"),
    "rope dynamic": ("llama", rope(rope_type="dynamic", factor=2.0), "rope_type"),
    "rope longrope": ("llama", rope(rope_type="longrope", factor=2.0), "rope_type"),
    "rope type number": ("llama", rope(rope_type=3), "rope_type"),
    "rope list": ("llama", {"rope_parameters": [1, 2]}, "rope_parameters"),
    "rope by layer type": ("llama", rope(full_attention={"factor": 2.0}, factor=2.0), "factor"),
    "theta 0": ("llama", rope(rope_theta=0), "rope_theta"),
    "theta -1": ("llama", rope(rope_theta=-1), "rope_theta"),
    "theta 2^63": ("llama", rope(rope_theta=2**63), "rope_theta"),
    "theta huge": ("llama", rope(rope_theta=10**3000), "rope_theta"),
    "theta NaN": ("llama", rope(rope_theta=math.nan), "rope_theta"),
    "theta text": ("llama", rope(rope_theta="12"), "rope_theta"),
    "theta null": ("llama", rope(rope_theta=None), "rope_theta"),
    "theta bool": ("llama", rope(rope_theta=True), "rope_theta"),
    "linear without factor": ("llama", rope(rope_type="linear"), "factor"),
    "linear negative": ("llama", rope(rope_type="linear", factor=-2.0), "factor"),
    "linear NaN": ("llama", rope(rope_type="linear", factor=math.nan), "factor"),
    "linear 0": ("llama", rope(rope_type="linear", factor=0), "factor"),
    "default with a factor": ("llama", rope(factor=2.0), "factor"),
    "linear with yarn's beta": ("llama", rope(rope_type="linear", factor=2.0, beta_fast=32), "beta_fast"),
    "mrope": ("llama", rope(mrope_section=[4, 4, 4]), "mrope_section"),
    "llama3 without low": ("llama", rope(**{**LLAMA3, "low_freq_factor": None}), "low_freq_factor"),
    "llama3 crossed": ("llama", rope(**{**LLAMA3, "low_freq_factor": 4.0}), "high_freq_factor"),
    "llama3 original 0": ("llama", rope(**{**LLAMA3, "original_max_position_embeddings": 0}), "original_max"),
    "llama3 original 2^31": ("llama", rope(**{**LLAMA3, "original_max_position_embeddings": 2**31}), "original_max"),
    "llama3 original float": ("llama", rope(**{**LLAMA3, "original_max_position_embeddings": 16.0}), "original_max"),
    "yarn factor 1e9": ("llama", rope(**{**YARN, "factor": 1e9}), "factor"),
    "yarn attention factor": ("llama", rope(**YARN, attention_factor=-1.0), "attention_factor"),
    "yarn beta": ("llama", rope(**YARN, beta_fast=1.0, beta_slow=2.0), "beta_fast"),
    "yarn truncate": ("llama", rope(**YARN, truncate="no"), "truncate"),
    "two ropes": ("llama", {**rope(), "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
    "two thetas": ("llama", {**rope(), "rope_theta": 500.0}, "rope_theta"),
    "two rope types": ("llama", rope(rope_type="linear", type="yarn", factor=2.0), "type"),
    "layer types short": ("qwen3", {"layer_types": ["full_attention"]}, "layer_types"),
    "layer types unknown": ("qwen3", {"layer_types": ["full_attention", "linear", "full_attention"]}, "layer_types"),
    "layer types text": ("qwen3", {"layer_types": "full_attention"}, "layer_types"),
    "window layers without window": ("qwen3", {"sliding_window": None}, "sliding_window"),
    "window switched off": ("qwen3", {"use_sliding_window": False}, "sliding_window"),
    "muse window null": ("muse_glimmer", {"sliding_window": None}, "sliding_window"),
    "muse theta differs": ("muse_glimmer", {"layer_rope_theta": [1000.0] * 7}, "layer_rope_theta"),
    "muse theta short": ("muse_glimmer", {"layer_rope_theta": [0]}, "layer_rope_theta"),
    "muse theta NaN": ("muse_glimmer", {"layer_rope_theta": [math.nan] * 7}, "layer_rope_theta"),
    "muse soft-cap 0": ("muse_glimmer", {"final_logit_softcapping": 0.0}, "final_logit_softcapping"),
    "muse soft-cap null": ("muse_glimmer", {"final_logit_softcapping": None}, "final_logit_softcapping"),
    "muse multiplier inf": ("muse_glimmer", {"output_multiplier": math.inf}, "output_multiplier"),
    "muse q scale missing": ("muse_glimmer", {"qk_scale_factor": ...}, "qk_scale_factor"),
    "muse activation": ("muse_glimmer", {"hidden_activation": "gelu"}, "hidden_activation"),
    "muse ties inside only": ("muse_glimmer", {"tie_word_embeddings": True}, "tie_word_embeddings"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    family, changes, field = REFUSED[case]
    with pytest.raises(ConfigError, match=field) as caught:
        ModelConfig.from_hf(hf(family, **changes))
    assert len(str(caught.value)) < 600
    ModelConfig.from_hf(hf(family))


@pytest.mark.parametrize("value", [..., None, [], "LlamaForCausalLM", [3], ["LlamaForCausalLM", "Qwen3ForCausalLM"]])
def test_architectures_missing_or_malformed(value):
    with pytest.raises(ConfigError, match="LlamaForCausalLM, MuseGlimmer") as caught:
        ModelConfig.from_hf(hf("llama", architectures=value))
    assert caught.value.field == "architectures"


def test_unknown_architecture_names_the_supported_set():
    with pytest.raises(ConfigError, match="LlamaForCausalLM, MuseGlimmerForConditionalGeneration, Qwen3ForCausalLM"):
        ModelConfig.from_hf(hf("llama", architectures=["MambaForCausalLM"]))


@pytest.mark.parametrize("data", [None, [], "x", {"architectures": ["MuseGlimmerForConditionalGeneration"]}])
def test_not_a_config(data):
    with pytest.raises(ConfigError):
        ModelConfig.from_hf(data)


def test_unknown_keys_warn_once_and_strict_raises(caplog):
    data = hf("llama", brand_new_scaling=3, another="x")
    with caplog.at_level(logging.WARNING, logger="pyrite"):
        ModelConfig.from_hf(data)
    assert [r.getMessage() for r in caplog.records] == [
        "config keys that pyrite does not know are ignored: another, brand_new_scaling"
    ]
    with pytest.raises(ConfigError, match="brand_new_scaling"):
        ModelConfig.from_hf(data, strict=True)


def test_unknown_keys_of_all_levels_are_found():
    data = hf("muse_glimmer", inner_thing=1)
    data["outer_thing"] = 2
    data["text_config"]["rope_parameters"]["rope_thing"] = 3
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_hf(data, strict=True)
    assert caught.value.got == "text_config.rope_parameters.rope_thing, text_config.inner_thing, outer_thing"


def test_auto_map_is_ignored_with_one_warning(tmp_path, caplog):
    canary = tmp_path / "modeling_canary.py"
    canary.write_text("raise SystemExit('imported')")
    data = hf("llama", auto_map={"AutoModelForCausalLM": "modeling_canary.Canary"})
    (tmp_path / "config.json").write_text(json.dumps(data))
    with caplog.at_level(logging.WARNING, logger="pyrite"):
        load_config(tmp_path, strict=True)
    assert [r.getMessage() for r in caplog.records] == ["auto_map is ignored: pyrite runs no code from a model folder"]


def test_old_spellings_mean_the_same():
    new = ModelConfig.from_hf(hf("llama", rope_parameters=LLAMA3))
    scaling = {key: value for key, value in LLAMA3.items() if key not in ("rope_theta", "rope_type")}
    for name in ("type", "rope_type"):
        old = hf("llama", rope_parameters=..., rope_theta=10000.0, rope_scaling={name: "llama3", **scaling})
        assert ModelConfig.from_hf(old, strict=True) == new
    plain = hf("llama", rope_parameters=..., rope_theta=10000.0, rope_scaling=None)
    assert ModelConfig.from_hf(plain, strict=True).rope == ModelConfig.from_hf(hf("llama")).rope


def test_kv_groups_and_slots():
    config = ModelConfig.from_hf(hf("muse_glimmer"))
    assert config.layer_windows == (WINDOW, WINDOW, None, WINDOW, WINDOW, WINDOW, None)
    assert config.layer_ropes == tuple(window is not None for window in config.layer_windows)
    assert [(g.window, g.num_layers) for g in config.kv_groups] == [(WINDOW, 5), (None, 2)]
    assert config.layer_slots == ((0, 0), (0, 1), (1, 0), (0, 2), (0, 3), (0, 4), (1, 1))


def test_muse_layers_without_lists_count_from_the_last():
    explicit = ModelConfig.from_hf(hf("muse_glimmer"))
    assert ModelConfig.from_hf(hf("muse_glimmer", layer_types=..., layer_rope_theta=...)) == explicit


def test_rope_and_window_are_independent():
    config = ModelConfig.from_hf(hf("muse_glimmer", layer_rope_theta=[0] * 7))
    assert config.layer_ropes == (False,) * 7
    assert record(config).rope_tables == ()
    assert config.kv_groups == ModelConfig.from_hf(hf("muse_glimmer")).kv_groups


def test_eos_ids_outside_the_vocabulary_are_dropped():
    assert ModelConfig.from_hf(hf("llama", eos_token_id=[1, 5, 333, 2**40])).eos_token_ids == (1, 5)
    assert ModelConfig.from_hf(hf("llama", eos_token_id=None)).eos_token_ids == ()


def test_the_largest_config_is_recorded_quickly():
    data = hf("muse_glimmer", num_hidden_layers=2048, layer_types=..., layer_rope_theta=...)
    started = time.process_time()
    program = record(ModelConfig.from_hf(data))
    assert time.process_time() - started < 10
    assert len(program.slots) < 10


def test_from_hf_does_not_change_its_argument():
    data = hf("muse_glimmer")
    before = copy.deepcopy(data)
    ModelConfig.from_hf(data)
    assert data == before


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([0, -1, 2**31, 2**63]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(family=st.sampled_from(FAMILIES), value=JSON_VALUES, pick=st.integers(0, 10**6))
def test_any_value_anywhere_is_read_or_refused(family, value, pick):
    data = hf(family)
    places = [(data, key) for key in data]
    for nested in ("text_config", "rope_parameters"):
        places += [(inner, key) for inner in [data.get(nested)] if isinstance(inner, dict) for key in inner]
    if family == "muse_glimmer":
        places += [(data["text_config"]["rope_parameters"], key) for key in ("rope_type", "rope_theta", "factor")]
    place, key = places[pick % len(places)]
    place[key] = value
    try:
        config = ModelConfig.from_hf(data)
    except ConfigError as error:
        assert len(str(error)) < 1000
    else:
        assert config.num_heads % config.num_kv_heads == 0
        assert all(math.isfinite(freq) and freq > 0 for freq in config.rope.inv_freq)


BROKEN_FILES: dict[str, bytes] = {
    "empty": b"",
    "not json": b"{",
    "not utf-8": b'{"a": "\xff"}',
    "a list": b"[]",
    "nested": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "many digits": b'{"a": ' + b"9" * 100_000 + b"}",
    "key twice": b'{"vocab_size": 1, "vocab_size": 2}',
    "too large": b'{"a": "' + b"x" * (5 << 20) + b'"}',
}


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_broken_config_files(tmp_path, case):
    (tmp_path / "config.json").write_bytes(BROKEN_FILES[case])
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        load_config(tmp_path)
    assert str(tmp_path) not in str(caught.value)


def test_config_that_is_not_a_file_of_the_folder(tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(CheckpointError, match="not found"):
        load_config(folder)
    folder.mkdir()
    with pytest.raises(CheckpointError, match="not found"):
        load_config(folder)
    config = folder / "config.json"
    config.mkdir()
    with pytest.raises(CheckpointError):
        load_config(folder)
    config.rmdir()
    os.mkfifo(config)
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_config(folder)
    config.unlink()
    (tmp_path / "outside.json").write_text(json.dumps(hf("llama")))
    config.symlink_to(tmp_path / "outside.json")
    with pytest.raises(CheckpointError, match="outside"):
        load_config(folder)


def test_links_of_the_hub_cache_are_followed(tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "f00").write_text(json.dumps(hf("llama")))
    (snapshot / "config.json").symlink_to(blobs / "f00")
    assert load_config(snapshot) == ModelConfig.from_hf(hf("llama"))
