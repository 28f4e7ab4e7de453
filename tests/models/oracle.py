"""transformers' answers, computed once per folder and prompt."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
import transformers
from pyrite.models import load_config
from tiny_models import ORDINARY_IDS, VOCAB_SIZE


@functools.cache
def model_of(folder: Path) -> transformers.PreTrainedModel:
    """transformers' own class for the folder, in f32 with eager attention."""
    architecture = load_config(folder).architecture
    model = getattr(transformers, architecture).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def prompt(length: int, seed: int = 0) -> list[int]:
    """Random ordinary ids."""
    return np.random.default_rng([length, seed]).choice(ORDINARY_IDS, length).tolist()


@functools.cache
def _logprobs(folder: Path, token_ids: tuple[int, ...]) -> np.ndarray:
    with torch.inference_mode():
        logits = model_of(folder)(torch.tensor([token_ids])).logits[0]
    return torch.log_softmax(logits.double(), dim=-1).numpy()


def oracle_logprobs(folder: Path, token_ids: list[int]) -> np.ndarray:
    """[len(token_ids), vocab_size] f64."""
    return _logprobs(folder, tuple(token_ids))


def oracle_greedy(folder: Path, token_ids: list[int], count: int) -> list[int]:
    """The `count` ordinary tokens that transformers' `generate` appends."""
    others = sorted(set(range(VOCAB_SIZE)) - set(ORDINARY_IDS))
    options = {"max_new_tokens": count, "do_sample": False, "suppress_tokens": others}
    with torch.inference_mode():
        out = model_of(folder).generate(torch.tensor([token_ids]), **options)
    return out[0, len(token_ids) :].tolist()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Row-wise, in f64."""
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
