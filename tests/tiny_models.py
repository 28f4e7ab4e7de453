"""Tiny random checkpoints of every family, built with transformers, in which each mechanism is felt.

`make_tiny(family, folder)` writes one; `tiny(family)` gives a cached one for the session. Weights have a standard
deviation of at least 0.1, norms and biases are random, head_dim is 24, head ratios are 7:1 or 3:1, the window is 17.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

VOCAB_SIZE = 333
WINDOW = 17
BOS, EOS, PAD = 0, 1, 2
ORDINARY_IDS = range(3, 330)
"""Ids that mean text in every family: no special tokens, no image placeholders, no padding rows."""

_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

_SHARED: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "head_dim": 24,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-2,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
_SIZES: dict[str, dict[str, Any]] = {
    "llama": {
        **_SHARED,
        "hidden_size": 112,
        "num_attention_heads": 7,
        "num_key_value_heads": 1,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "qwen3": {
        **_SHARED,
        "hidden_size": 96,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    },
    "muse_glimmer": {
        **_SHARED,
        "num_hidden_layers": 7,  # not a multiple of 4, so that counting from the wrong end shows
        "hidden_size": 96,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "post_norm_eps": 0.3,
        "sliding_window": WINDOW,
        "qk_scale_factor": 2.1,
        "output_multiplier": 0.6,
        "final_logit_softcapping": 3.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    },
}
_VISION: dict[str, Any] = {
    "patch_size": 4,
    "pos_emb_height": 6,
    "pos_emb_width": 6,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "hidden_size": 48,
    "intermediate_size": 40,
}
FAMILIES = tuple(_SIZES)


def make_tiny(family: str, folder: Path, *, seed: int = 0, dtype: str = "float32", **overrides: Any) -> Path:
    """Write a model folder with config, safetensors, generation config and tokenizer.

    Args:
        overrides: config values in transformers' spelling; for muse_glimmer those of the text config, and
            `tie_word_embeddings` of the whole.
    """
    import torch

    torch.manual_seed(seed)
    model = _model(family, {**_SIZES[family], **overrides})
    for name, parameter in model.named_parameters():
        _fill(family, name, parameter.data)
    model = model.to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)
    model.generation_config.update(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, do_sample=False)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    _write_tokenizer(folder)
    return folder


@functools.cache
def _session_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pyrite-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def _cached(family: str, options: str) -> Path:
    folder = _session_folder() / f"{family}-{len(list(_session_folder().iterdir()))}"
    return make_tiny(family, folder, **json.loads(options))


def tiny(family: str, **options: Any) -> Path:
    """A folder of `make_tiny` shared by the whole session; do not write into it."""
    return _cached(family, json.dumps(options, sort_keys=True))


def _model(family: str, sizes: dict[str, Any]) -> Any:
    import transformers

    if family == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    if family == "qwen3":
        return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes))
    outer = {"tie_word_embeddings": sizes.pop("tie_word_embeddings", False)}
    config = transformers.MuseGlimmerConfig(
        text_config=sizes,
        vision_config=dict(_VISION),
        image_token_id=331,
        video_token_id=332,
        out_hidden_size=4 * _VISION["hidden_size"],
        projector_hidden_size=32,
        **outer,
    )
    return transformers.MuseGlimmerForConditionalGeneration(config)


def _fill(family: str, name: str, data: Any) -> None:
    """Random values that make a parameter felt."""
    if "norm" in name:
        centred = family == "muse_glimmer" and ".layers." in name
        data.normal_(0.0 if centred else 1.0, 0.35)
    elif name.endswith(".bias"):
        data.normal_(0.0, 0.5)
    elif "embed_tokens" in name:
        data.normal_(0.0, 0.25)
    else:
        data.normal_(0.0, 0.15)


def _write_tokenizer(folder: Path) -> None:
    """A byte-level BPE over `VOCAB_SIZE` ids, without the last three rows of the embedding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 3,
        special_tokens=["<|bos|>", "<|eos|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = "the quick brown fox jumps over the lazy dog while seven small boats drift under the old stone bridge"
    tokenizer.train_from_iterator([words, words.title(), "0123456789 " * 3], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|bos|>", eos_token="<|eos|>", pad_token="<|pad|>"
    )
    fast.chat_template = _CHAT_TEMPLATE
    fast.save_pretrained(folder)


class SafetensorsSource:
    """The tensors of a folder read in the plainest way: the shape of `_core.Checkpoint`, independent of it."""

    def __init__(self, folder: Path) -> None:
        self.entries: dict[str, tuple[Path, int, dict[str, Any]]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            data = path.read_bytes()
            size = int.from_bytes(data[:8], "little")
            for name, entry in json.loads(data[8 : 8 + size]).items():
                if name != "__metadata__":
                    self.entries[name] = (path, 8 + size, entry)

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {name: (entry["dtype"], tuple(entry["shape"])) for name, (_, _, entry) in self.entries.items()}

    def read(self, name: str) -> bytes:
        path, base, entry = self.entries[name]
        begin, end = entry["data_offsets"]
        return path.read_bytes()[base + begin : base + end]
