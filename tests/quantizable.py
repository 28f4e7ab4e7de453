"""Tiny checkpoints of every family whose matrices divide into groups, and a few whose do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_models import tiny

_WIDE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _WIDE),
    "qwen3": ("qwen3", _WIDE),
    "qwen3_tied": ("qwen3", {**_WIDE, "tie_word_embeddings": True}),
    "muse_glimmer": ("muse_glimmer", _WIDE),
    "qwen3_uneven": ("qwen3", {**_WIDE, "intermediate_size": 80}),  # `down` fits no group size
}
QUANTIZABLE = tuple(_OPTIONS)


def quantizable(name: str, **options: Any) -> Path:
    """The folder of that name; do not write into it."""
    family, sizes = _OPTIONS[name]
    return tiny(family, **{**sizes, **options})
