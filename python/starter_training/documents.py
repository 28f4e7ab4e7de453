"""Plain documents without chat format, so that a bare prompt such as "Once upon a time" is continued."""

from __future__ import annotations

from random import Random

from .kinds import facts
from .kinds.numbers import DAYS, MONTHS, draw_difference, draw_sum
from .split import is_held
from .stories import story

_FACTS = facts.all_answers()


def fact_page(rng: Random) -> str:
    """Five to ten facts in a row."""
    return " ".join(rng.sample(_FACTS, rng.randint(5, 10)))


def sum_page(rng: Random, held: bool) -> str:
    """Four to ten sums and differences, one a line, from one side of the split."""
    lines = []
    for _ in range(rng.randint(4, 10)):
        if rng.random() < 0.5:
            a, b = draw_sum(rng, held)
            lines.append(f"{a} + {b} = {a + b}.")
        else:
            a, b = draw_difference(rng, held)
            lines.append(f"{a} - {b} = {a - b}.")
    return "\n".join(lines)


def counting_page(rng: Random) -> str:
    """Numbers, days, months or letters in order."""
    kind = rng.randrange(4)
    if kind == 0:
        start, step = rng.randrange(80), rng.choice((1, 1, 1, 2, 5, 10))
        return "Counting: " + ", ".join(map(str, range(start, min(start + 20 * step, 100), step))) + "."
    if kind == 1:
        return "The days of the week are " + ", ".join(DAYS[:-1]) + " and " + DAYS[-1] + "."
    if kind == 2:
        return "The months of the year are " + ", ".join(MONTHS[:-1]) + " and " + MONTHS[-1] + "."
    return "The alphabet: " + " ".join("abcdefghijklmnopqrstuvwxyz") + "."


def document(rng: Random, held: bool) -> str:
    """Draw one document. A story is held out by the hash of its first sixty letters, a page of facts by its own."""
    chance = rng.random()
    if 0.80 <= chance < 0.92:
        return sum_page(rng, held)
    if chance >= 0.97:
        return counting_page(rng)
    while True:
        text = story(rng) if chance < 0.80 else fact_page(rng)
        if is_held("document", text[:60]) == held:
            return text
