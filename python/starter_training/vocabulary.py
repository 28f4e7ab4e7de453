"""Words that stories, lists and questions are built from."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GIRLS = _words(
    "Mia Ana Lena Nora Ella Ruth Sara Lily Emma Zoe Ivy Rosa Clara Maya Nina Eva Olga Hana "
    "Leila Jane Kate Amy Tess Lucy"
)
BOYS = _words(
    "Tom Ben Sam Max Leo Omar Ivan Paul Adam Noah Luis Felix Hugo Oscar Jack Nils Theo Karl Ravi Dan Finn Emil Otto Ali"
)
NAMES = GIRLS + BOYS
PET_NAMES = _words("Pip Dot Milo Luna Coco Bobo Rusty Daisy Poppy Toby Bella Sunny Nico Momo Fifi Biscuit Pepper Olive")

ANIMALS = _words(
    "fox rabbit bear mouse owl frog duck cat dog hedgehog squirrel pony lamb goat turtle crow beaver otter badger deer"
)
OBJECTS = _words(
    "key hat ball book lamp coin cup kite drum ring shoe spoon map box bell stone feather basket ribbon candle "
    "button bottle letter brush mirror pencil scarf rope blanket whistle"
)
FOODS = _words(
    "apple bread cake soup cheese honey pear plum carrot pie rice egg nut berry cookie peach tomato potato melon corn"
)
COLOURS = _words("red blue green yellow white black brown orange pink purple grey golden")
PLACES = _words(
    "garden forest river market kitchen park school bridge barn hill village library beach "
    "cave field tower cellar meadow"
)
MOODS = _words("little young clever kind shy brave curious quiet cheerful lazy gentle old")

NATURE = _words(
    "sun moon star rain snow wind cloud storm tree leaf flower grass river lake sea island mountain valley sand fire "
    "water ice night morning summer winter spring autumn sky earth"
)
HOME = _words(
    "house door window table chair bed floor wall roof clock plate knife fork glass pot oven sofa carpet shelf stairs "
    "road car train boat plane bike ship bus wheel street city town farm shop"
)
PEOPLE = _words(
    "mother father sister brother baby friend teacher doctor farmer baker king queen pilot singer child driver "
    "hand foot head nose ear eye mouth arm leg back"
)
MORE_ANIMALS = _words("horse cow pig sheep hen lion tiger wolf fish snake bee ant spider monkey camel whale eagle swan")

WORDS = tuple(dict.fromkeys(ANIMALS + OBJECTS + FOODS + PLACES + NATURE + HOME + PEOPLE + MORE_ANIMALS + COLOURS))
"""Every common word used in lists, spelling and counting letters."""


def with_article(word: str) -> str:
    """Put "a" or "an" before a word, by its first letter."""
    return ("an " if word[0] in "aeiou" else "a ") + word


def plural(word: str) -> str:
    """Form the plural of the foods and objects above."""
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    if word.endswith(("s", "x", "ch", "sh", "to")):
        return word + "es"
    return word + "s"


COUNTABLE = _words(
    "apple cookie pear plum carrot egg nut key ball book lamp coin cup kite button stone feather ribbon candle pencil "
    "letter bottle spoon hat"
)
