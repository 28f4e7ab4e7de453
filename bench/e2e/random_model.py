"""Write a folder with the exact shape of a well-known model and random weights, where the real ones cannot be had.

    python bench/e2e/random_model.py llama-3.1-8b FOLDER [--seed 0] [--device cuda]

config.json and bf16 safetensors shards: N(0, 0.02), norms 1. There is no tokenizer, so prompts are token ids. The text
would be noise; shapes, dtypes and file layout are real.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SHARD_BYTES = 4 << 30
STANDARD_DEVIATION = 0.02

_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": {**_LLAMA3, "factor": 8.0},
        "tie_word_embeddings": False,
    },
    "llama-3.2-1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": _LLAMA3,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
}
"""The keys of config.json that differ; all are of the llama family."""


def config(shape: str) -> dict[str, Any]:
    """config.json of a shape."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        **SHAPES[shape],
    }


def tensors(shape: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the order of the file."""
    sizes = SHAPES[shape]
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    queries = sizes["num_attention_heads"] * sizes["head_dim"]
    keys = sizes["num_key_value_heads"] * sizes["head_dim"]
    yield "model.embed_tokens.weight", (sizes["vocab_size"], hidden)
    for layer in range(sizes["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            yield f"{prefix}self_attn.{name}_proj.weight", (rows, hidden)
        yield prefix + "self_attn.o_proj.weight", (hidden, queries)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        yield prefix + "mlp.gate_proj.weight", (inner, hidden)
        yield prefix + "mlp.up_proj.weight", (inner, hidden)
        yield prefix + "mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    if not sizes["tie_word_embeddings"]:
        yield "lm_head.weight", (sizes["vocab_size"], hidden)


def write(shape: str, folder: Path, *, seed: int = 0, device: str = "cpu") -> None:
    """Write a model; one that is complete is left alone.

    Args:
        shape: a key of `SHAPES`.
        folder: made when missing.
        seed: of the weights.
        device: where the numbers are drawn; they differ from device to device.
    """
    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    make = torch.Generator(device=device).manual_seed(seed)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, sizes in tensors(shape):
        added = 2 * int(torch.Size(sizes).numel())
        if shards[-1] and size + added > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = sizes
        size += added
    places: dict[str, str] = {}
    for index, shard in enumerate(shards):
        file = f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        save_file({name: _weight(sizes, make) for name, sizes in shard.items()}, folder / file)
        places |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps(config(shape), indent=1))  # last: it marks the folder as complete


def _weight(sizes: tuple[int, ...], make: torch.Generator) -> torch.Tensor:
    if len(sizes) == 1:
        return torch.ones(sizes, dtype=torch.bfloat16)
    drawn = torch.empty(sizes, dtype=torch.bfloat16, device=make.device)
    return drawn.normal_(0.0, STANDARD_DEVIATION, generator=make).cpu()


def main() -> None:
    """Parse arguments and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    write(arguments.shape, arguments.folder, seed=arguments.seed, device=arguments.device)


if __name__ == "__main__":
    main()
