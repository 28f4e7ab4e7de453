"""Rotary tables against transformers' own functions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pyrite.models import ModelConfig
from tiny_models import tiny
from transformers import AutoConfig, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from variants import ROPE_KINDS

KINDS = {
    **ROPE_KINDS,
    "llama 3.2": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "qwen yarn": {
        "rope_type": "yarn",
        "rope_theta": 1000000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
    },
    "yarn factor 1": {
        "rope_type": "yarn",
        "rope_theta": 1000000.0,
        "factor": 1.0,
        "original_max_position_embeddings": 32768,
    },
    "long theta": {"rope_type": "default", "rope_theta": 3580165449.0},
}


@pytest.mark.parametrize("head_dim", [24, 64, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_frequencies_match_transformers(kind, head_dim):
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        head_dim=head_dim,
        max_position_embeddings=131072,
        rope_parameters=KINDS[kind],
    )
    reference = LlamaRotaryEmbedding(config)
    table = ModelConfig.from_hf(config.to_dict()).rope
    np.testing.assert_allclose(table.inv_freq, reference.inv_freq.double().numpy(), rtol=3e-6)
    assert table.scale == pytest.approx(reference.attention_scaling, rel=1e-6)
    assert np.float32(table.inv_freq[-1]) == table.inv_freq[-1], "not representable in f32"


def test_absent_original_length_is_the_models():
    rope = {key: value for key, value in KINDS["qwen yarn"].items() if key != "original_max_position_embeddings"}
    config = LlamaConfig(architectures=["LlamaForCausalLM"], head_dim=64, rope_parameters=dict(rope))
    reference = LlamaRotaryEmbedding(config)
    data = {**config.to_dict(), "rope_parameters": rope}
    np.testing.assert_allclose(ModelConfig.from_hf(data).rope.inv_freq, reference.inv_freq.double(), rtol=3e-6)


def test_theta_defaults_as_in_transformers():
    folder = tiny("llama")
    data = AutoConfig.from_pretrained(folder).to_dict()
    data.pop("rope_parameters")
    table = ModelConfig.from_hf(data).rope
    assert table.inv_freq[1] == pytest.approx(math.exp(-2 / 24 * math.log(10000.0)))
    assert torch.tensor(table.inv_freq).shape == (12,)
