"""The tiny checkpoints that parity is shown on: family and overrides by name."""

from __future__ import annotations

from typing import Any

_ORIGINAL = 16  # below every longer prompt, so that scaling is felt

ROPE_KINDS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": _ORIGINAL,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "original_max_position_embeddings": _ORIGINAL,
        "beta_fast": 2.0,
        "beta_slow": 0.25,
    },
    "yarn_attention_factor": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "attention_factor": 1.5,
        "truncate": False,
    },
    "yarn_mscale": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "mscale": 2.0,
        "mscale_all_dim": 0.7,
    },
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"llama_{kind}": ("llama", {"rope_parameters": rope}) for kind, rope in ROPE_KINDS.items()},
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "llama_no_bias": ("llama", {"attention_bias": False, "mlp_bias": False}),
    "llama_attention_bias": ("llama", {"mlp_bias": False}),
    "llama_all_heads": ("llama", {"num_key_value_heads": 7}),
    "qwen3": ("qwen3", {}),
    "qwen3_tied": ("qwen3", {"tie_word_embeddings": True, "attention_bias": False}),
    "qwen3_full": ("qwen3", {"use_sliding_window": False}),
    "qwen3_yarn": ("qwen3", {"rope_parameters": ROPE_KINDS["yarn"]}),
    "muse_glimmer": ("muse_glimmer", {}),
    "muse_glimmer_tied": ("muse_glimmer", {"tie_word_embeddings": True}),
    "muse_glimmer_bias": ("muse_glimmer", {"attention_bias": True}),
    "muse_glimmer_7_to_1": (
        "muse_glimmer",
        {"num_attention_heads": 7, "num_key_value_heads": 1, "hidden_size": 84, "num_hidden_layers": 6},
    ),
}
