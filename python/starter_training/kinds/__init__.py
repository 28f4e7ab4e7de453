"""All kinds of questions: how often each is drawn, and which of them have one exact answer."""

from __future__ import annotations

from . import facts, numbers, reading, talk, words
from .base import Maker, Sample, Turn

MAKERS: dict[str, Maker] = numbers.MAKERS | words.MAKERS | facts.MAKERS | reading.MAKERS | talk.MAKERS
"""Kind -> maker."""

WEIGHTS: dict[str, float] = {
    "add": 5.0,
    "subtract": 5.0,
    "word_problem": 5.0,
    "compare": 2.0,
    "sort": 3.0,
    "largest": 2.0,
    "neighbour": 3.0,
    "spell": 1.5,
    "count_letters": 2.5,
    "edge_letter": 2.5,
    "alphabet": 1.5,
    "count_list": 1.2,
    "reverse": 1.5,
    "reading": 5.0,
    "remember": 2.0,
    "fact": 1.5,
}
"""How often a kind is drawn in training; 1 where absent."""

OPEN_KINDS = ("tell",)
"""Kinds without one right answer; they are graded apart."""

EXACT_KINDS = tuple(kind for kind in MAKERS if kind not in OPEN_KINDS)

__all__ = ["EXACT_KINDS", "MAKERS", "OPEN_KINDS", "WEIGHTS", "Maker", "Sample", "Turn"]
