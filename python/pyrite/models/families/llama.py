"""Llama 1 to 3.x: pre-norm decoder with rope, grouped-query attention and SwiGLU.

Source: arXiv 2302.13971, 2407.21783; tensor names and config keys of transformers `models/llama`.
"""

from __future__ import annotations

from pyrite.models.spec import COMMON_KEYS, FamilySpec, Key, Norm

SPEC = FamilySpec(
    name="llama",
    model_types=("llama",),
    embedding="model.embed_tokens.weight",
    head="lm_head.weight",
    layer="model.layers.{layer}.",
    attention_norm=Norm("input_layernorm.weight"),
    mlp_norm=Norm("post_attention_layernorm.weight"),
    final_norm=Norm("model.norm.weight"),
    keys={**COMMON_KEYS, "mlp_bias": Key("mlp_bias", False)},
)
