"""Qwen3 (dense): llama's skeleton with a weighted RMS norm on each query and key head, and optional window layers.

Source: arXiv 2505.09388; tensor names and config keys of transformers `models/qwen3`.
"""

from __future__ import annotations

from pyrite.models.spec import COMMON_KEYS, FamilySpec, Key, Norm

SPEC = FamilySpec(
    name="qwen3",
    model_types=("qwen3",),
    embedding="model.embed_tokens.weight",
    head="lm_head.weight",
    layer="model.layers.{layer}.",
    attention_norm=Norm("input_layernorm.weight"),
    mlp_norm=Norm("post_attention_layernorm.weight"),
    final_norm=Norm("model.norm.weight"),
    q_norm=Norm("self_attn.q_norm.weight"),
    k_norm=Norm("self_attn.k_norm.weight"),
    windows="switched",
    keys={
        **COMMON_KEYS,
        "head_dim": Key("head_dim", 128),
        "sliding_window": Key("sliding_window", None),
        "use_sliding_window": Key("use_sliding_window", False),
        "max_window_layers": Key("max_window_layers", 28),
        "layer_types": Key("layer_types", None),
    },
)
