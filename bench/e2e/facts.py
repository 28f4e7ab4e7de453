"""Sizes of a model from its headers, and the operations that follow from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def model_facts(folder: str) -> dict[str, int]:
    """Parameters and bytes from the headers alone."""
    from pyrite import _core

    checkpoint = _core.open_checkpoint(folder)
    config = json.loads(Path(folder, "config.json").read_text())
    shapes = {name: shape for name, (_, shape) in checkpoint.tensors().items()}
    embedding = next(shape for name, shape in shapes.items() if name.endswith("embed_tokens.weight"))
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return {
        "parameters": total,
        "layer_parameters": total - int(np.prod(embedding)),  # tied head: it counts for one row only
        "bytes": checkpoint.num_bytes(),
        "attention_width": config["num_attention_heads"] * head_dim,
        "kv_width": config["num_key_value_heads"] * head_dim,
        "layers": config["num_hidden_layers"],
        "vocab": embedding[0],
        "hidden": embedding[1],
    }


def prefill_flops(facts: dict[str, int], tokens: int) -> float:
    """Multiply-adds (as two) of one prompt: matrices, causal attention, one row of the head."""
    attention = 2 * 2 * facts["layers"] * facts["attention_width"] * tokens * (tokens + 1) / 2
    return 2.0 * facts["layer_parameters"] * tokens + attention + 2.0 * facts["vocab"] * facts["hidden"]
