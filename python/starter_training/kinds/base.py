"""What one generated question looks like, whatever its kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Turn:
    """One user message and the reply to it; `thought` is the worked way to `answer`."""

    user: str
    answer: str
    thought: str


@dataclass(frozen=True)
class Sample:
    """A short conversation; the last turn is the one that is graded."""

    kind: str
    turns: tuple[Turn, ...]
    system: str = ""


Maker = Callable[[Random, bool], Sample]
"""A function (rng, held) -> Sample that draws only from the training side or only from the held-out side."""


def single(kind: str, user: str, answer: str, thought: str, system: str = "") -> Sample:
    """Wrap one question and its answer."""
    return Sample(kind, (Turn(user, answer, thought),), system)
