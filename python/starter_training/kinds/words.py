"""Questions about words and lists of words: spelling, counting, repeating, turning round, picking."""

from __future__ import annotations

from random import Random

from starter_training.split import draw, is_held
from starter_training.vocabulary import WORDS

from .base import Sample, single


def _word_and_form(rng: Random, held: bool, kind: str, forms: tuple[str, ...]) -> tuple[str, str]:
    """Draw a word and a phrasing whose pair lies on one side of the split."""

    def propose() -> tuple[bool, tuple[str, str]]:
        word, form = rng.choice(WORDS), rng.choice(forms)
        return is_held(kind, word, form), (word, form)

    return draw(held, propose)


SPELL = ("Spell {w}.", "Spell the word {w}.", "How do you spell {w}?", "Can you spell {w}?", "Please spell {w} for me.",
         "What are the letters of {w}?", "Write {w} letter by letter.")  # fmt: skip
LETTERS = (
    "How many letters are in {w}?",
    "How many letters does {w} have?",
    "Count the letters in {w}.",
    "How long is the word {w}?",
    "What is the number of letters in {w}?",
    "Letters in {w}: how many?",
)
EDGE = ("What is the {e} letter of {w}?", "Which letter is {e} in {w}?", "Name the {e} letter of {w}.",
        "Tell me the {e} letter of the word {w}.", "{w}: what is its {e} letter?")  # fmt: skip


def spell(rng: Random, held: bool) -> Sample:
    """Spell a word; held out by word and phrasing."""
    word, form = _word_and_form(rng, held, "spell", SPELL)
    letters = " ".join(word)
    return single("spell", form.format(w=word), f"{letters}.", f"The word {word} is {letters}.")


def count_letters(rng: Random, held: bool) -> Sample:
    """Count the letters of a word; held out by word and phrasing."""
    word, form = _word_and_form(rng, held, "letters", LETTERS)
    steps = ", ".join(f"{letter} {i}" for i, letter in enumerate(word, 1))
    return single("count_letters", form.format(w=word), f"The word {word} has {len(word)} letters.", f"{steps}.")


def edge_letter(rng: Random, held: bool) -> Sample:
    """First or last letter; held out by word and phrasing."""
    edge = rng.choice(("first", "last"))
    word, form = _word_and_form(rng, held, f"{edge} letter", EDGE)
    letter = word[0] if edge == "first" else word[-1]
    thought = f"The word {word} is {' '.join(word)}."
    return single("edge_letter", form.format(w=word, e=edge), f"The {edge} letter of {word} is {letter}.", thought)


ALPHABET = ("Which comes first in the alphabet, {a} or {b}?", "Which word is first in a dictionary: {a} or {b}?",
            "Put {a} or {b} first, by the alphabet?")  # fmt: skip


def alphabet(rng: Random, held: bool) -> Sample:
    """Which of two words, with different first letters, comes first; held out by pair of words."""

    def propose() -> tuple[bool, tuple[str, str]]:
        a, b = rng.sample(WORDS, 2)
        while a[0] == b[0]:
            b = rng.choice(WORDS)
        return is_held("alphabet", *sorted((a, b))), (a, b)

    a, b = draw(held, propose)
    first, second = sorted((a, b))
    thought = f"The word {a} starts with {a[0]}, the word {b} with {b[0]}. In order: {first[0]}, {second[0]}."
    return single("alphabet", rng.choice(ALPHABET).format(a=a, b=b), f"The word {first} comes first.", thought)


def _list(rng: Random, held: bool, kind: str, low: int, high: int) -> list[str]:
    def propose() -> tuple[bool, list[str]]:
        words = rng.sample(WORDS, rng.randint(low, high))
        return is_held(kind, *words), words

    return draw(held, propose)


COUNT = ("How many words are in this list: {s}?", "Count these words: {s}.", "How many things are in this list: {s}?",
         "Count the items: {s}.")  # fmt: skip


def count_list(rng: Random, held: bool) -> Sample:
    """Count two to eight words; held out by list."""
    words = _list(rng, held, "count", 2, 8)
    steps = ", ".join(f"{word} {i}" for i, word in enumerate(words, 1))
    return single("count_list", rng.choice(COUNT).format(s=", ".join(words)), f"There are {len(words)}.", f"{steps}.")


REPEAT = (
    "Repeat after me: {s}.",
    "Say this: {s}.",
    "Repeat these words: {s}.",
    "Please say {s}.",
    "Copy this list: {s}.",
)
REVERSE = ("Say this list backwards: {s}.", "Reverse this list: {s}.", "Turn this list around: {s}.",
           "Write these words in reverse order: {s}.")  # fmt: skip


def repeat(rng: Random, held: bool) -> Sample:
    """Repeat two to six words; held out by list."""
    words = _list(rng, held, "repeat", 2, 6)
    shown = ", ".join(words)
    thought = f"The list has {len(words)} words. I say them in the same order."
    return single("repeat", rng.choice(REPEAT).format(s=shown), f"{shown}.", thought)


def reverse(rng: Random, held: bool) -> Sample:
    """Turn a list of two to five words round; held out by list."""
    words = _list(rng, held, "reverse", 2, 5)
    shown = ", ".join(words)
    steps = ", ".join(f"{i} {word}" for i, word in enumerate(words, 1))
    question = rng.choice(REVERSE).format(s=shown)
    return single("reverse", question, f"{', '.join(reversed(words))}.", f"{steps}. From {len(words)} down to 1.")


ORDINALS = ("first", "second", "third", "fourth", "fifth")
PICK = ("What is the {o} word in this list: {s}?", "Which word is {o} in: {s}?", "Name the {o} word of this list: {s}.",
        "Tell me the {o} of these words: {s}.")  # fmt: skip


def pick(rng: Random, held: bool) -> Sample:
    """Name the first .. fifth or last word of a list; held out by list."""
    words = _list(rng, held, "pick", 3, 5)
    place = rng.randrange(-1, len(words))
    ordinal = "last" if place < 0 else ORDINALS[place]
    steps = ", ".join(f"{word} {i}" for i, word in enumerate(words, 1))
    question = rng.choice(PICK).format(o=ordinal, s=", ".join(words))
    return single("pick", question, f"The {ordinal} word is {words[place]}.", f"{steps}.")


MAKERS = {
    "spell": spell, "count_letters": count_letters, "edge_letter": edge_letter, "alphabet": alphabet,
    "count_list": count_list, "repeat": repeat, "reverse": reverse, "pick": pick,
}  # fmt: skip
