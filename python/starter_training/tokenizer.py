"""Train the byte-level BPE of 2048 tokens: ordinary tokens first, then the special tokens, as in Muse."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from . import chat

VOCAB_SIZE = 2048
NUM_SPECIALS = 32
NAMED_SPECIALS = (chat.BOS, chat.EOS, "<|reserved_special_token_2|>", chat.EOM, chat.EOT, chat.PAD, chat.START,
                  chat.MESSAGE, "<|image_start|>", "<|image_end|>", "<|vid_start|>", "<|vid_end|>",
                  "<|vid_frame_separator|>", "<|image|>", chat.VIDEO, chat.IMAGE)  # fmt: skip
SPLIT = r" ?\p{L}[\p{L}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""Words with the space before them, single digits without it, runs of signs, white space."""


def special_tokens() -> list[str]:
    """The special tokens in the order of their ids."""
    names = list(NAMED_SPECIALS)
    return names + [f"<|reserved_special_token_{i}|>" for i in range(len(names), NUM_SPECIALS)]


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Train on `texts`, which hold no special tokens.

    Raises:
        ValueError: the text was too small for the vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - NUM_SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE - NUM_SPECIALS:
        raise ValueError(f"got {tokenizer.get_vocab_size()} ordinary tokens, expected {VOCAB_SIZE - NUM_SPECIALS}")
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special_tokens()])
    bos = tokenizer.token_to_id(chat.BOS)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{chat.BOS} $A", pair=f"{chat.BOS} $A {chat.BOS}:1 $B:1", special_tokens=[(chat.BOS, bos)]
            ),
        ]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja as transformers reads them."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=chat.BOS,
        eos_token=chat.EOS,
        pad_token=chat.PAD,
        model_max_length=1024,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = chat.TEMPLATE
    fast.save_pretrained(folder)
