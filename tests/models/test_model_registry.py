"""Families from outside, and what importing costs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
from pyrite.errors import ConfigError
from pyrite.models import ModelConfig, registry
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


def test_importing_models_is_light():
    code = (
        "import sys, pyrite.models, pyrite.weights.reader, pyrite.weights.mapping\n"
        "heavy = {'torch', 'numpy', 'transformers', 'triton', 'safetensors'} & sys.modules.keys()\n"
        "families = [m for m in sys.modules if m.startswith('pyrite.models.families.')]\n"
        "print(sorted(heavy), families)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[] []"
