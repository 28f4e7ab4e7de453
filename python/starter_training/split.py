"""Decide which questions are held out of training. The decision is a hash, so it needs no list and no seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeVar

HELD_PERCENT = 12

T = TypeVar("T")


def is_held(*parts: object) -> bool:
    """Tell whether the key made of `parts` is held out of training."""
    text = "\x1f".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % 100 < HELD_PERCENT


def draw(held: bool, propose: Callable[[], tuple[bool, T]]) -> T:
    """Call `propose` until the first half of what it returns, "this is held out", equals `held`.

    Raises:
        RuntimeError: 100 000 proposals all fell on the other side.
    """
    for _ in range(100_000):
        side, value = propose()
        if side == held:
            return value
    raise RuntimeError(f"no proposal with held={held} in 100000 tries")
