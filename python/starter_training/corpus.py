"""The endless training stream: chats and plain documents, packed into rows of tokens with a loss mask."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import numpy as np
from tokenizers import Tokenizer

from . import chat
from .documents import document
from .kinds import MAKERS, WEIGHTS, Sample

DOCUMENT_SHARE = 0.10
"""Share of plain documents among the pieces; they are longer than chats, so about a quarter of the tokens."""

SYSTEMS = ("You are a helpful assistant.", "Answer briefly.", "Be kind and clear.", "You are a friendly teacher.",
           "Answer in one line.", "Help the user.")  # fmt: skip
CASUAL_KINDS = frozenset(MAKERS) - {"reading", "word_problem", "remember", "persona", "unknown", "tell"}
Piece = list[tuple[str, bool]]
"""Text spans of one conversation or document; True marks those that the loss counts."""


def _casual(rng: Random, user: str) -> str:
    """Sometimes write a question as people type: small first letter, no mark at the end."""
    chance = rng.random()
    if chance < 0.06:
        return (user[0].lower() + user[1:]).rstrip("?.")
    return user.rstrip("?.") if chance < 0.10 else user


def draw_sample(rng: Random, held: bool, kind: str | None = None) -> Sample:
    """Draw one conversation of `kind`, or of a kind drawn by weight."""
    if kind is None:
        kinds = tuple(MAKERS)
        kind = rng.choices(kinds, weights=[WEIGHTS.get(k, 1.0) for k in kinds])[0]
    return MAKERS[kind](rng, held)


def conversation(rng: Random) -> Piece:
    """One training chat: one sample, or two to four of them as turns of the same chat."""
    samples = [draw_sample(rng, False)]
    system = samples[0].system
    if not system and rng.random() < 0.15:
        system = rng.choice(SYSTEMS)
    if not samples[0].system and rng.random() < 0.55:
        more = [draw_sample(rng, False) for _ in range(rng.choice((1, 1, 2, 3)))]
        samples += [sample for sample in more if sample.kind not in ("persona", "remember", "tell")]
    strength = "low" if rng.random() < 0.45 else rng.choice(chat.STRENGTHS[1:])
    piece: Piece = [(chat.render_system(system, strength), False)]
    for sample in samples:
        for turn in sample.turns:
            user = _casual(rng, turn.user) if sample.kind in CASUAL_KINDS else turn.user
            piece.append((chat.render_user(user), False))
            piece.append((chat.render_reply(turn.answer, turn.thought, strength), True))
    return piece


def training_piece(rng: Random) -> Piece:
    """Draw one document or one chat."""
    if rng.random() < DOCUMENT_SHARE:
        return [(f"{chat.BOS}{document(rng, False)}{chat.EOS}", True)]
    return conversation(rng)


def tokenizer_texts(seed: int, count: int) -> Iterator[str]:
    """Yield plain training text, without special tokens, to train the BPE on."""
    rng = Random(seed)
    for _ in range(count):
        if rng.random() < 0.3:
            yield document(rng, False)
        else:
            sample = draw_sample(rng, False)
            yield f"{sample.system}\nReasoning strength: medium.\nsystem user assistant to=self to=user\n"
            for turn in sample.turns:
                yield from (turn.user, turn.thought, turn.answer)


def rows(tokenizer: Tokenizer, seed: int, length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (ids [length + 1] int64, counted [length + 1] bool) for ever, pieces packed one after another."""
    rng = Random(seed)
    ids: list[int] = []
    counted: list[bool] = []
    while True:
        spans = [span for _ in range(256) for span in training_piece(rng)]
        encoded = tokenizer.encode_batch_fast([text for text, _ in spans], add_special_tokens=False)
        for (_, count), one in zip(spans, encoded, strict=True):
            ids += one.ids
            counted += [count] * len(one.ids)
        while len(ids) > length:
            yield np.array(ids[: length + 1]), np.array(counted[: length + 1])
            ids, counted = ids[length:], counted[length:]
