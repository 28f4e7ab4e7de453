"""Small tokenizers and model folders, trained or written on the spot."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS, PAD, END = "<|bos|>", "<|eos|>", "<|pad|>", "<|end|>"

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps; the fox does not.",
    "naïve façade, Zürich, Ελληνικά, русский язык, 日本語のテキスト, 한국어, नमस्ते",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 a\u0308\u0323 🦀🦀🦀 1234567890 + 2 = ?\n\tif x < 3:\n\t\treturn y",
] * 20


@lru_cache(maxsize=1)
def byte_level_json() -> str:
    """A byte-level BPE of 400 tokens with four special ones and a BOS-adding post-processor."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[BOS, EOS, PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", special=False), AddedToken("《書》", special=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return tokenizer.to_str()


@lru_cache(maxsize=1)
def prefix_space_json() -> str:
    """A sentencepiece-style BPE with byte fallback whose decoder strips the leading space, as Llama 2's."""
    pieces = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyz.,!é語", "▁a", "▁t", "th", "he", "▁th", "▁the"]
    merges = [("▁", "a"), ("▁", "t"), ("t", "h"), ("h", "e"), ("▁t", "h"), ("▁th", "e")]
    tokenizer = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer.to_str()


def write(folder: Path, tokenizer: str | None = None, **files: Any) -> Path:
    """Write `tokenizer.json` and others; a key such as `generation_config` names a JSON file."""
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


TOKENIZER_CONFIG = {
    "bos_token": BOS,
    "eos_token": {"content": EOS, "__type": "AddedToken"},
    "pad_token": PAD,
    "tokenizer_class": "PreTrainedTokenizerFast",
}
