"""A backend whose next logits are a hash of all token ids so far, and a tokenizer of bytes.

The ids are read back through block tables and slots, so that any mix-up of blocks or tokens shows as a wrong token.
"""

from __future__ import annotations

import codecs
import hashlib
import threading
from collections.abc import Sequence

import numpy as np

EOS = 256
BOS = 257
VOCAB_SIZE = 260
VOCAB_LIMIT = 258
"""Rows from here on belong to no token."""


def hash_logits(ids: Sequence[int]) -> np.ndarray:
    """[VOCAB_SIZE] f32: normal numbers seeded by the ids. Letters and digits are a little more likely than the rest."""
    digest = hashlib.blake2b(np.asarray(ids, dtype="<i4").tobytes(), digest_size=8).digest()
    logits = np.random.default_rng(int.from_bytes(digest, "little")).normal(0, 2, VOCAB_SIZE).astype(np.float32)
    logits[97:123] += 4
    logits[VOCAB_LIMIT:] = 100  # must never be drawn
    return logits


def greedy(prompt: Sequence[int], max_tokens: int, stops: Sequence[int] = (EOS,)) -> list[int]:
    """What the model continues with at temperature 0."""
    ids = list(prompt)
    for _ in range(max_tokens):
        ids.append(int(np.argmax(hash_logits(ids)[:VOCAB_LIMIT])))
        if ids[-1] in stops:
            break
    return ids[len(prompt) :]


class HashModel:
    """Implements `Backend` on a cache that holds token ids where a model holds keys and values.

    `fail_on(step)` is called before each step and may raise or wait; `nan_on` are prefixes of ids (as tuples) whose
    row becomes NaN.
    """

    def __init__(self, groups: Sequence[tuple[int | None, int]], block_size: int) -> None:
        self.groups = groups
        self.block_size = block_size
        self.caches = [np.full(blocks * block_size, -1, np.int64) for _, blocks in groups]
        self.steps = 0
        self.fail_on = lambda step: None
        self.nan_on: set[tuple[int, ...]] = set()
        self.closed = 0
        self.thread: threading.Thread | None = None

    def run(self, plan) -> np.ndarray:
        self.thread = threading.current_thread()
        self.steps += 1
        self.fail_on(self.steps)
        for group, cache in enumerate(self.caches):
            for src, dst in plan.block_copies(group):
                size = self.block_size
                cache[dst * size : (dst + 1) * size] = cache[src * size : (src + 1) * size]
            slots = plan.slot_mapping(group)
            assert len(slots) == len(plan.token_ids)
            assert len(set(slots.tolist())) == len(slots) and slots.min() >= 0
            cache[slots] = plan.token_ids
        starts, positions = plan.cu_seqlens_q, plan.positions
        rows = []
        for row in plan.logit_rows:
            seq = int(np.searchsorted(starts, row, side="right")) - 1
            assert plan.seq_lens[seq] == positions[starts[seq + 1] - 1] + 1
            ids = self._ids(plan, seq, int(positions[row]))
            logits = hash_logits(ids)
            if tuple(ids) in self.nan_on:
                logits[:] = np.nan
            rows.append(logits)
        return np.stack(rows) if rows else np.empty((0, VOCAB_SIZE), np.float32)

    def _ids(self, plan, seq: int, position: int) -> list[int]:
        """Token ids at 0 to `position`, as the full group has them; window groups must agree as far as they reach."""
        found: list[int] | None = None
        for group, (window, _) in sorted(enumerate(self.groups), key=lambda g: g[1][0] is not None):
            table = plan.block_table(group)[seq]
            first = 0 if window is None else max(0, position - window + 1)
            wanted = np.arange(first, position + 1)
            blocks = table[wanted // self.block_size]
            assert (blocks >= 0).all()
            ids = self.caches[group][blocks * self.block_size + wanted % self.block_size].tolist()
            if found is None:
                found = ids
            assert found[first:] == ids
        assert found is not None and -1 not in found
        return found

    def close(self) -> None:
        self.closed += 1


class ByteTokenizer:
    """Ids 0 to 255 are bytes."""

    bos_token_id = None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode("utf-8"))


class ByteVocabulary:
    def detokenizer(self, split_reasoning: bool) -> ByteDetokenizer:
        return ByteDetokenizer()

    def decode_token(self, token_id: int) -> str:
        return bytes([token_id]).decode("utf-8", "replace") if token_id < 256 else ""


class ByteDetokenizer:
    reasoning = None

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Sequence[int]) -> str:
        return self._decoder.decode(bytes(i for i in ids if i < 256))

    def flush(self) -> str:
        return self._decoder.decode(b"", True)


def text_of(ids: Sequence[int]) -> str:
    """The whole text at once, without the end token."""
    return bytes(i for i in ids if i < 256).decode("utf-8", "replace")
