"""Families from outside, and what importing costs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
from pyrite.errors import ConfigError
from pyrite.models import ModelConfig, Norm, record, registry
from pyrite.models.families import llama
from test_model_config import hf


@pytest.fixture
def clean_registry(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {})


@pytest.mark.usefixtures("clean_registry")
def test_a_registered_family_is_used_and_named():
    spec = dataclasses.replace(llama.SPEC, name="mine", model_types=(), layer="blocks.{layer}.")
    registry.register_family("MineForCausalLM", spec)
    registry.register_family("MineForCausalLM", spec)  # again is fine
    config = ModelConfig.from_hf(hf("llama", architectures=["MineForCausalLM"], model_type="mine"))
    assert config.family is spec
    assert "MineForCausalLM" in registry.supported_architectures()
    with pytest.raises(ConfigError, match="already registered"):
        registry.register_family("MineForCausalLM", llama.SPEC)


@pytest.mark.usefixtures("clean_registry")
@pytest.mark.parametrize(
    ("architecture", "spec"),
    [("LlamaForCausalLM", llama.SPEC), ("", llama.SPEC), ("a b", llama.SPEC), (3, llama.SPEC), ("New", {"name": "x"})],
)
def test_bad_registrations(architecture, spec):
    with pytest.raises(ConfigError):
        registry.register_family(architecture, spec)
    assert "New" not in registry.supported_architectures()


@pytest.mark.parametrize(
    ("flags", "missing"),
    [
        ({"windows": "pattern"}, "layer_types, sliding_window"),
        ({"windows": "switched"}, "layer_types, max_window_layers, sliding_window, use_sliding_window"),
        ({"nope_layers": True}, "layer_rope_theta"),
        ({"post_mlp_norm": Norm("x", eps="post_norm_eps")}, "post_norm_eps"),
        ({"keys": {}}, "activation, attention_bias"),
    ],
)
def test_a_flag_needs_its_keys(flags, missing):
    with pytest.raises(ConfigError, match=missing):
        dataclasses.replace(llama.SPEC, **flags)


def test_a_query_factor_needs_a_query_norm():
    config = ModelConfig.from_hf(hf("llama"))
    with pytest.raises(ConfigError, match="q_scale"):
        record(dataclasses.replace(config, q_scale=2.0))


def test_importing_models_is_light():
    code = (
        "import sys, pyrite.models, pyrite.weights.reader, pyrite.weights.mapping\n"
        "heavy = {'torch', 'numpy', 'transformers', 'triton', 'safetensors'} & sys.modules.keys()\n"
        "families = [m for m in sys.modules if m.startswith('pyrite.models.families.')]\n"
        "print(sorted(heavy), families)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[] []"
