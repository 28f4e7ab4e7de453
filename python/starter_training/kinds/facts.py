"""Small facts. What is held out is a pair of fact and phrasing: the fact is taught, the question is new."""

from __future__ import annotations

from random import Random

from starter_training.split import draw, is_held
from starter_training.vocabulary import ANIMALS, COLOURS, FOODS, MORE_ANIMALS

from .base import Sample, single

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "Poland": "Warsaw",
    "Greece": "Athens",
    "Egypt": "Cairo",
    "Japan": "Tokyo",
    "China": "Beijing",
    "India": "New Delhi",
    "Russia": "Moscow",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Denmark": "Copenhagen",
    "Portugal": "Lisbon",
    "Austria": "Vienna",
    "Ireland": "Dublin",
    "England": "London",
    "Scotland": "Edinburgh",
    "Hungary": "Budapest",
    "Turkey": "Ankara",
    "Kenya": "Nairobi",
    "Peru": "Lima",
    "Cuba": "Havana",
    "Chile": "Santiago",
    "Canada": "Ottawa",
    "Mexico": "Mexico City",
    "Brazil": "Brasilia",
    "Belgium": "Brussels",
    "Iceland": "Reykjavik",
    "Korea": "Seoul",
    "Thailand": "Bangkok",
    "Vietnam": "Hanoi",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
    "Australia": "Canberra",
    "Ukraine": "Kyiv",
}
CAPITAL_FORMS = (
    "What is the capital of {x}?",
    "Which city is the capital of {x}?",
    "Name the capital of {x}.",
    "Tell me the capital of {x}.",
    "What is the capital city of {x}?",
    "The capital of {x}?",
    "Do you know the capital of {x}?",
)

OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "fast": "slow",
    "up": "down",
    "open": "closed",
    "wet": "dry",
    "day": "night",
    "happy": "sad",
    "old": "young",
    "full": "empty",
    "hard": "soft",
    "light": "dark",
    "near": "far",
    "left": "right",
    "high": "low",
    "long": "short",
    "loud": "quiet",
    "early": "late",
    "clean": "dirty",
    "strong": "weak",
    "rich": "poor",
    "in": "out",
    "first": "last",
    "good": "bad",
    "thick": "thin",
    "sweet": "sour",
    "true": "false",
    "wide": "narrow",
    "push": "pull",
    "win": "lose",
    "begin": "end",
    "love": "hate",
    "north": "south",
    "east": "west",
}
OPPOSITE_FORMS = (
    "What is the opposite of {x}?",
    "Which word is the opposite of {x}?",
    "Name the opposite of {x}.",
    "Tell me the opposite of {x}.",
    "Give me the opposite of {x}.",
    "The opposite of {x}?",
    "What word means the opposite of {x}?",
)

GROUPS = {
    "animal": ANIMALS + MORE_ANIMALS,
    "food": FOODS,
    "colour": tuple(c for c in COLOURS if c != "orange"),
    "tool": ("hammer", "saw", "drill", "rake", "spade", "axe", "broom", "screwdriver", "ladder", "brush"),
    "vehicle": ("car", "train", "boat", "plane", "bike", "ship", "bus", "tram", "truck", "van"),
    "piece of clothing": ("hat", "shoe", "scarf", "coat", "shirt", "sock", "glove", "dress", "boot", "jacket"),
}
GROUP_FORMS = (
    "What kind of thing is {x}?",
    "What is {x}?",
    "Which group does {x} belong to?",
    "Tell me what {x} is.",
    "What sort of thing is {x}?",
    "Is {x} an animal, a food, a colour, a tool, a vehicle or a piece of clothing?",
)

SOUNDS = {
    "cow": "moo",
    "dog": "woof",
    "cat": "meow",
    "duck": "quack",
    "sheep": "baa",
    "pig": "oink",
    "owl": "hoot",
    "bee": "buzz",
    "snake": "hiss",
    "lion": "roar",
    "mouse": "squeak",
    "frog": "croak",
    "horse": "neigh",
}
BABIES = {
    "cow": "calf",
    "dog": "puppy",
    "cat": "kitten",
    "duck": "duckling",
    "sheep": "lamb",
    "pig": "piglet",
    "horse": "foal",
    "bear": "cub",
    "goat": "kid",
    "hen": "chick",
    "deer": "fawn",
    "swan": "cygnet",
}
LEGS = {
    "cow": 4,
    "dog": 4,
    "bird": 2,
    "spider": 8,
    "ant": 6,
    "bee": 6,
    "snake": 0,
    "fish": 0,
    "horse": 4,
    "cat": 4,
    "hen": 2,
}
SIDES = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6, "octagon": 8, "rectangle": 4}
COLOUR_OF = {
    "grass": "green",
    "snow": "white",
    "the sky on a clear day": "blue",
    "a banana": "yellow",
    "coal": "black",
    "a tomato": "red",
    "a carrot": "orange",
    "chocolate": "brown",
    "milk": "white",
    "a lemon": "yellow",
}
AMOUNTS = {
    "days are in a week": (7, "There are 7 days in a week."),
    "months are in a year": (12, "There are 12 months in a year."),
    "hours are in a day": (24, "There are 24 hours in a day."),
    "minutes are in an hour": (60, "There are 60 minutes in an hour."),
    "seconds are in a minute": (60, "There are 60 seconds in a minute."),
    "seasons are in a year": (4, "There are 4 seasons in a year."),
    "letters are in the alphabet": (26, "There are 26 letters in the alphabet."),
    "wheels does a bike have": (2, "A bike has 2 wheels."),
    "wheels does a car have": (4, "A car has 4 wheels."),
    "fingers are on one hand": (5, "There are 5 fingers on one hand."),
    "centimetres are in a metre": (100, "There are 100 centimetres in a metre."),
    "planets go around the sun": (8, "There are 8 planets around the sun."),
}
PLAIN = {
    "what ice is made of": "Ice is made of frozen water.",
    "what bees make": "Bees make honey.",
    "what cows give us": "Cows give us milk.",
    "where fish live": "Fish live in water.",
    "what the sun is": "The sun is a star.",
    "what the moon goes around": "The moon goes around the earth.",
    "what the earth goes around": "The earth goes around the sun.",
    "what bread is made from": "Bread is made from flour.",
    "what plants need to grow": "Plants need water and light to grow.",
    "where birds lay their eggs": "Birds lay their eggs in a nest.",
    "what we see with": "We see with our eyes.",
    "what we hear with": "We hear with our ears.",
    "where books are kept": "Books are kept in a library.",
    "what a baker makes": "A baker makes bread.",
    "what rain falls from": "Rain falls from clouds.",
    "which planet we live on": "We live on the planet earth.",
    "which animal is the largest": "The blue whale is the largest animal.",
    "what paper is made from": "Paper is made from wood.",
    "what cheese is made from": "Cheese is made from milk.",
    "which ocean is the largest": "The Pacific is the largest ocean.",
    "which mountain is the highest": "Mount Everest is the highest mountain.",
    "what steam is": "Steam is water as a hot gas.",
    "when the sun rises": "The sun rises in the morning.",
    "where penguins live": "Penguins live in the cold south.",
}
PLAIN_FORMS = (
    "Tell me {x}.",
    "Do you know {x}?",
    "Please tell me {x}.",
    "Can you say {x}?",
    "I want to know {x}.",
    "Say {x}.",
    "Can you tell me {x}?",
)
AMOUNT_FORMS = (
    "How many {x}?",
    "Tell me how many {x}.",
    "Do you know how many {x}?",
    "Please say how many {x}.",
    "I want to know how many {x}.",
    "Can you tell me how many {x}?",
)
_ASK = (
    "{q}?",
    "Tell me: {q}?",
    "Please answer: {q}?",
    "I have a question: {q}?",
    "Quick question: {q}?",
    "Say it: {q}?",
)


def _table(kind: str, forms: tuple[str, ...], rows: list[tuple[str, str]], rng: Random, held: bool) -> tuple[str, str]:
    """Draw (question, answer) from rows of (slot text, answer)."""

    def propose() -> tuple[bool, tuple[str, str]]:
        (x, answer), form = rng.choice(rows), rng.choice(forms)
        text = form.format(x=x, q=x)
        return is_held(kind, x, form), (text[0].upper() + text[1:], answer)

    return draw(held, propose)


def _article(word: str) -> str:
    return ("an " if word[0] in "aeiou" else "a ") + word


def _group_rows() -> list[tuple[str, str]]:
    rows = []
    for group, words in GROUPS.items():
        for word in words:
            thing = (
                word
                if group == "colour" or word in ("bread", "soup", "cheese", "honey", "rice", "corn")
                else _article(word)
            )
            rows.append((thing, f"{thing[0].upper() + thing[1:]} is {_article(group)}."))
    seen = [thing for thing, _ in rows]
    return [row for row in rows if seen.count(row[0]) == 1]


def _nature_rows() -> list[tuple[str, str]]:
    rows = [(f"what sound does {_article(a)} make", f"{_article(a).capitalize()} says {s}.") for a, s in SOUNDS.items()]
    rows += [(f"what is a baby {a} called", f"A baby {a} is called {_article(b)}.") for a, b in BABIES.items()]
    rows += [
        (f"how many legs does {_article(a)} have", f"{_article(a).capitalize()} has {n} legs.") for a, n in LEGS.items()
    ]
    rows += [
        (f"how many sides does {_article(s)} have", f"{_article(s).capitalize()} has {n} sides.")
        for s, n in SIDES.items()
    ]
    return rows + [(f"what colour is {t}", f"{t[0].upper() + t[1:]} is {c}.") for t, c in COLOUR_OF.items()]


CAPITAL_ROWS = [(x, f"The capital of {x} is {y}.") for x, y in CAPITALS.items()]
OPPOSITE_ROWS = [(x, f"The opposite of {x} is {y}.") for a, b in OPPOSITES.items() for x, y in ((a, b), (b, a))]
GROUP_ROWS = _group_rows()
NATURE_ROWS = _nature_rows()
AMOUNT_ROWS = [(x, answer) for x, (_, answer) in AMOUNTS.items()]
PLAIN_ROWS = list(PLAIN.items())


def _thought(answer: str) -> str:
    return f"I know this one. {answer}"


def capital(rng: Random, held: bool) -> Sample:
    """Capitals of countries."""
    question, answer = _table("capital", CAPITAL_FORMS, CAPITAL_ROWS, rng, held)
    return single("capital", question, answer, _thought(answer))


def opposite(rng: Random, held: bool) -> Sample:
    """Opposites."""
    question, answer = _table("opposite", OPPOSITE_FORMS, OPPOSITE_ROWS, rng, held)
    return single("opposite", question, answer, _thought(answer))


def group(rng: Random, held: bool) -> Sample:
    """What kind of thing a word names."""
    question, answer = _table("group", GROUP_FORMS, GROUP_ROWS, rng, held)
    return single("group", question, answer, _thought(answer))


def fact(rng: Random, held: bool) -> Sample:
    """Other facts: nature, amounts, where things come from."""
    tables = (("nature", _ASK, NATURE_ROWS), ("amount", AMOUNT_FORMS, AMOUNT_ROWS), ("plain", PLAIN_FORMS, PLAIN_ROWS))
    kind, forms, rows = rng.choices(tables, weights=(5, 2, 3))[0]
    question, answer = _table(kind, forms, rows, rng, held)
    return single("fact", question, answer, _thought(answer))


def all_answers() -> list[str]:
    """Every fact as a sentence, for plain documents."""
    rows = CAPITAL_ROWS + OPPOSITE_ROWS + GROUP_ROWS + NATURE_ROWS + AMOUNT_ROWS + PLAIN_ROWS
    return [answer for _, answer in rows]


MAKERS = {"capital": capital, "opposite": opposite, "group": group, "fact": fact}
