"""Muse Glimmer, the text decoder: sandwich norms, scaleless q/k norm, sigmoid output gate, window and NoPE layers.

The layer norms are centred (1 + w), the final one is plain, the embedding's has no weight. The query factor comes on
top of 1 / sqrt(head_dim). Folders hold a vision tower too; a text load skips its tensors by the list below.

Source: tensor names, config keys and formulas of transformers `models/muse_glimmer`.
"""

from __future__ import annotations

from pyrite.models.spec import COMMON_KEYS, FamilySpec, Key, Norm

SPEC = FamilySpec(
    name="muse_glimmer",
    model_types=("muse_glimmer",),
    text_key="text_config",
    embedding="model.language_model.embed_tokens.weight",
    head="lm_head.weight",
    layer="model.language_model.layers.{layer}.",
    embedding_norm=Norm(None),
    attention_norm=Norm("input_layernorm.weight", weight_offset=1.0),
    post_attention_norm=Norm("post_attention_layernorm.weight", weight_offset=1.0, eps="post_norm_eps"),
    mlp_norm=Norm("pre_feedforward_layernorm.weight", weight_offset=1.0),
    post_mlp_norm=Norm("post_feedforward_layernorm.weight", weight_offset=1.0, eps="post_norm_eps"),
    final_norm=Norm("model.language_model.norm.weight"),
    q_norm=Norm(None),
    k_norm=Norm(None),
    output_gate="self_attn.gate_proj",
    windows="pattern",
    full_every=4,
    nope_layers=True,
    keys={
        **COMMON_KEYS,
        "rms_norm_eps": Key("rms_norm_eps", 1e-5),
        "post_norm_eps": Key("post_norm_eps", 1e-8),
        "activation": Key("hidden_activation", "silu"),
        "sliding_window": Key("sliding_window", None),
        "layer_types": Key("layer_types", None),
        "layer_rope_theta": Key("layer_rope_theta", None),
        "q_scale": Key("qk_scale_factor"),
        "logit_multiplier": Key("output_multiplier"),
        "logit_soft_cap": Key("final_logit_softcapping"),
    },
    outer_harmless_keys=frozenset(
        {
            "vision_config",
            "image_token_id",
            "video_token_id",
            "out_hidden_size",
            "projector_hidden_size",
            "projector_hidden_act",
        }
    ),
    skippable_tensors=("model.vision_tower.*", "model.vision_adapter.*", "model.vision_projection.*"),
)
