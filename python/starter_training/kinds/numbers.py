"""Questions about one- and two-digit numbers.

Pairs with a two-digit operand are held out by hash. Pairs of single digits are never held out: worked steps use them.
"""

from __future__ import annotations

from random import Random

from starter_training.split import draw, is_held
from starter_training.vocabulary import COUNTABLE, NAMES, plural

from .base import Sample, single


def sum_is_held(a: int, b: int) -> bool:
    """Tell whether a + b (and b + a) is kept out of training."""
    low, high = sorted((a, b))
    return high >= 10 and is_held("sum", low, high)


def difference_is_held(a: int, b: int) -> bool:
    """Tell whether a - b is kept out of training."""
    return b >= 10 and is_held("difference", a, b)


def _operand(rng: Random) -> int:
    return rng.randrange(10, 100) if rng.random() < 0.8 else rng.randrange(10)


def draw_sum(rng: Random, held: bool) -> tuple[int, int]:
    """Draw two operands of an addition from one side of the split."""

    def propose() -> tuple[bool, tuple[int, int]]:
        a, b = _operand(rng), _operand(rng)
        return sum_is_held(a, b), (a, b)

    return draw(held, propose)


def draw_difference(rng: Random, held: bool) -> tuple[int, int]:
    """Draw a >= b of a subtraction from one side of the split."""

    def propose() -> tuple[bool, tuple[int, int]]:
        b, a = sorted((_operand(rng), _operand(rng)))
        return difference_is_held(a, b), (a, b)

    return draw(held, propose)


def work_sum(a: int, b: int) -> str:
    """Add digit by digit."""
    ones = a % 10 + b % 10
    carry = ones // 10
    steps = f"Ones: {a % 10} + {b % 10} = {ones}."
    tens = a // 10 + b // 10 + carry
    if tens:
        middle = " + 1" if carry else ""
        steps += f" Tens: {a // 10} + {b // 10}{middle} = {tens}."
    return f"{steps} So {a + b}."


def work_difference(a: int, b: int) -> str:
    """Subtract digit by digit."""
    borrow = a % 10 < b % 10
    top = a % 10 + (10 if borrow else 0)
    steps = f"Ones: {top} - {b % 10} = {top - b % 10}."
    if a >= 10:
        middle = " - 1" if borrow else ""
        steps += f" Tens: {a // 10} - {b // 10}{middle} = {a // 10 - b // 10 - borrow}."
    return f"{steps} So {a - b}."


ADD = ("What is {a} + {b}?", "{a} + {b} = ?", "Add {a} and {b}.", "How much is {a} + {b}?", "What is {a} plus {b}?",
       "Calculate {a} + {b}.", "What is the sum of {a} and {b}?", "{a} + {b}")  # fmt: skip
SUBTRACT = ("What is {a} - {b}?", "{a} - {b} = ?", "Take {b} away from {a}.", "How much is {a} - {b}?",
            "What is {a} minus {b}?", "Calculate {a} - {b}.", "Subtract {b} from {a}.", "{a} - {b}")  # fmt: skip


def add(rng: Random, held: bool) -> Sample:
    """Two-digit addition."""
    a, b = draw_sum(rng, held)
    return single("add", rng.choice(ADD).format(a=a, b=b), f"{a} + {b} = {a + b}.", work_sum(a, b))


def subtract(rng: Random, held: bool) -> Sample:
    """Two-digit subtraction without negative results."""
    a, b = draw_difference(rng, held)
    return single("subtract", rng.choice(SUBTRACT).format(a=a, b=b), f"{a} - {b} = {a - b}.", work_difference(a, b))


GAIN = ("{n} has {a} {t}. {m} gives {n} {b} more. How many {t} does {n} have now?",
        "{n} found {a} {t} on Monday and {b} {t} on Tuesday. How many {t} does {n} have?",
        "There are {a} {t} in a box. {n} puts in {b} more. How many {t} are in the box?")  # fmt: skip
LOSS = ("{n} has {a} {t}. {n} gives {b} of them to {m}. How many {t} does {n} have left?",
        "{n} had {a} {t} and lost {b} of them. How many {t} are left?",
        "There are {a} {t} in a box. {n} takes out {b}. How many {t} are left in the box?")  # fmt: skip


def word_problem(rng: Random, held: bool) -> Sample:
    """A sum or a difference told as a small story."""
    n, m = rng.sample(NAMES, 2)
    thing = plural(rng.choice(COUNTABLE))
    if rng.random() < 0.5:
        a, b = draw_sum(rng, held)
        forms, sign, result, work = GAIN, "+", a + b, work_sum(a, b)
    else:
        a, b = draw_difference(rng, held)
        forms, sign, result, work = LOSS, "-", a - b, work_difference(a, b)
    question = rng.choice(forms).format(n=n, m=m, a=a, b=b, t=thing)
    return single("word_problem", question, f"{a} {sign} {b} = {result} {thing}.", f"{a} {sign} {b}. {work}")


def _two(rng: Random) -> tuple[int, int]:
    """Two different numbers, often with the same tens digit."""
    a = rng.randrange(100)
    b = (a // 10) * 10 + rng.randrange(10) if rng.random() < 0.35 else rng.randrange(100)
    return (a, b) if a != b else _two(rng)


def compare(rng: Random, held: bool) -> Sample:
    """Which of two numbers is larger or smaller; also as yes or no."""

    def propose() -> tuple[bool, tuple[int, int]]:
        a, b = _two(rng)
        return max(a, b) >= 10 and is_held("compare", min(a, b), max(a, b)), (a, b)

    a, b = draw(held, propose)
    low, high = sorted((a, b))
    relation = "larger" if a > b else "smaller"
    thought = f"{a} is {relation} than {b}."
    form = rng.randrange(8)
    if form < 3:
        question = (
            f"Which is larger, {a} or {b}?",
            f"Which number is bigger: {a} or {b}?",
            f"Is {a} or {b} the larger number?",
        )[form]
        return single("compare", question, f"{high} is larger.", thought)
    if form < 6:
        question = (
            f"Which is smaller, {a} or {b}?",
            f"Which number is less: {a} or {b}?",
            f"Is {a} or {b} the smaller number?",
        )[form - 3]
        return single("compare", question, f"{low} is smaller.", thought)
    word = "larger" if form == 6 else "smaller"
    truth = "Yes" if relation == word else "No"
    return single("compare", f"Is {a} {word} than {b}?", f"{truth}, {a} is {relation} than {b}.", thought)


def _several(rng: Random, held: bool, kind: str, sizes: tuple[int, ...]) -> list[int]:
    def propose() -> tuple[bool, list[int]]:
        numbers = rng.sample(range(100), rng.choice(sizes))
        return is_held(kind, *sorted(numbers)), numbers

    return draw(held, propose)


def sort(rng: Random, held: bool) -> Sample:
    """Sort three or four numbers, up or down."""
    numbers = _several(rng, held, "sort", (3, 3, 4))
    shown = ", ".join(map(str, numbers))
    down = rng.random() < 0.3
    result = sorted(numbers, reverse=down)
    if down:
        forms = (
            "Sort {s} from large to small.",
            "Sort these numbers from largest to smallest: {s}.",
            "Put {s} in falling order.",
        )
    else:
        forms = (
            "Sort {s}.",
            "Sort {s} from small to large.",
            "Sort these numbers: {s}.",
            "Put {s} in order.",
            "Order these numbers from smallest to largest: {s}.",
        )
    left, steps = list(numbers), []
    for number in result:
        rest = ", ".join(map(str, left))
        steps.append(f"From {rest} take {number}." if len(left) > 1 else f"Then {number}.")
        left.remove(number)
    return single("sort", rng.choice(forms).format(s=shown), ", ".join(map(str, result)) + ".", " ".join(steps))


def largest(rng: Random, held: bool) -> Sample:
    """The largest or the smallest of three to five numbers."""
    numbers = _several(rng, held, "largest", (3, 4, 5))
    shown = ", ".join(map(str, numbers))
    most = rng.random() < 0.5
    word = "largest" if most else "smallest"
    forms = (
        "What is the {w} of {s}?",
        "Which is the {w} number: {s}?",
        "Find the {w} number in {s}.",
        "Name the {w} of these numbers: {s}.",
    )
    pick = max if most else min
    best, steps = numbers[0], [f"Start with {numbers[0]}."]
    for number in numbers[1:]:
        best = pick(best, number)
        steps.append(f"{number}: keep {best}.")
    return single("largest", rng.choice(forms).format(w=word, s=shown), f"The {word} is {best}.", " ".join(steps))


EVEN = ("Is {n} even or odd?", "Is the number {n} odd or even?", "Tell me if {n} is even or odd.", "{n}: even or odd?",
        "Is {n} an even number or an odd number?", "Even or odd: {n}?")  # fmt: skip


def even_odd(rng: Random, held: bool) -> Sample:
    """Even or odd; held out by number and phrasing."""

    def propose() -> tuple[bool, tuple[int, str]]:
        n, form = rng.randrange(100), rng.choice(EVEN)
        return is_held("even", n, form), (n, form)

    n, form = draw(held, propose)
    word = "odd" if n % 2 else "even"
    return single("even_odd", form.format(n=n), f"{n} is {word}.", f"{n} ends in {n % 10}. {n % 10} is {word}.")


DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
NEXT = (
    "What {k} comes {r} {x}?",
    "Which {k} is {r} {x}?",
    "Which {k} comes right {r} {x}?",
    "Tell me the {k} {r} {x}.",
    "Name the {k} that comes {r} {x}.",
    "{x}: what {k} comes {r} it?",
)


def neighbour(rng: Random, held: bool) -> Sample:
    """The number, day, month or letter before or after another; held out by item and phrasing."""

    def propose() -> tuple[bool, tuple[str, str, int, str]]:
        word = rng.choice(("number", "number", "day", "month", "letter"))
        size = {"number": 99, "day": 7, "month": 12, "letter": 26}[word]
        index, relation, form = rng.randrange(size), rng.choice(("after", "before")), rng.choice(NEXT)
        edge = word in ("number", "letter") and (
            (index == 0 and relation == "before") or (index == 25 and word == "letter")
        )
        index = 3 if edge else index
        return is_held("neighbour", word, index, relation, form), (word, relation, index, form)

    word, relation, index, form = draw(held, propose)
    other = index + (1 if relation == "after" else -1)
    names: dict[str, tuple[str, ...]] = {"day": DAYS, "month": MONTHS, "letter": tuple("abcdefghijklmnopqrstuvwxyz")}
    if word == "number":
        x, y = str(index), str(other)
    else:
        x, y = names[word][index], names[word][other % len(names[word])]
    low, high = (x, y) if relation == "after" else (y, x)
    answer = f"{y} comes {relation} {x}."
    return single("neighbour", form.format(k=word, r=relation, x=x), answer, f"In order: {low}, {high}.")


MAKERS = {
    "add": add, "subtract": subtract, "word_problem": word_problem, "compare": compare, "sort": sort,
    "largest": largest, "even_odd": even_odd, "neighbour": neighbour,
}  # fmt: skip
