"""Questions whose answer stands in the conversation: a short passage, or what the user said before."""

from __future__ import annotations

from random import Random

from starter_training.split import draw, is_held
from starter_training.vocabulary import ANIMALS, COLOURS, FOODS, MOODS, NAMES, OBJECTS, PET_NAMES, PLACES, with_article

from .base import Sample, Turn, single

ACTS = (("found", "find"), ("took", "take"), ("lost", "lose"), ("bought", "buy"), ("hid", "hide"), ("saw", "see"))
FILL = (
    "It was a sunny day.",
    "It rained in the afternoon.",
    "The wind was cold.",
    "Everyone was happy.",
    "It was late.",
)


def reading(rng: Random, held: bool) -> Sample:
    """Two people, two things; asked: who, what, where, which colour. Held out by name, thing and place."""
    names, things, colours = rng.sample(NAMES, 2), rng.sample(OBJECTS, 2), rng.sample(COLOURS, 2)
    places, acts = rng.sample(PLACES, 2), [rng.choice(ACTS) for _ in range(2)]

    def propose() -> tuple[bool, tuple[list[str], list[str], list[str]]]:
        n, t, p = rng.sample(NAMES, 2), rng.sample(OBJECTS, 2), rng.sample(PLACES, 2)
        sides = [is_held("reading", n[i], t[i], p[i]) for i in range(2)]
        return all(sides) if held else any(sides), (n, t, p)

    names, things, places = draw(held, propose)
    lines = [f"{names[i]} {acts[i][0]} {with_article(colours[i])} {things[i]} at the {places[i]}." for i in range(2)]
    story = list(lines)
    if rng.random() < 0.5:
        story.insert(rng.randrange(3), rng.choice(FILL))
    i = rng.randrange(2)
    past, base = acts[i]
    question, answer = rng.choice(
        (
            (f"Who {past} the {things[i]}?", f"{names[i]} {past} the {things[i]}."),
            (f"What did {names[i]} {base}?", f"{names[i]} {past} {with_article(colours[i])} {things[i]}."),
            (f"Where did {names[i]} {base} the {things[i]}?", f"{names[i]} {past} the {things[i]} at the {places[i]}."),
            (f"What colour is the {things[i]}?", f"The {things[i]} is {colours[i]}."),
        )
    )
    text = " ".join(story)
    user = rng.choice(
        (f"{text} {question}", f"{text}\n{question}", f"Read this: {text} {question}", f"{question} {text}")
    )
    return single("reading", user, answer, f"The text says: {lines[i]}")


LIKES = FOODS + tuple(f"the colour {c}" for c in COLOURS) + tuple(f"the {p}" for p in PLACES)
INTRO = ("My name is {n} and I like {l}.", "I am {n}. I like {l}.", "Hello, I am {n} and I like {l}.",
         "Hi! My name is {n}. I like {l}.")  # fmt: skip


def _likes(word: str) -> str:
    if word.startswith("the "):
        return word
    uncounted = ("bread", "cake", "soup", "cheese", "honey", "pie", "rice", "corn")
    return (
        word
        if word in uncounted
        else {"berry": "berries", "cookie": "cookies"}.get(word, word + ("es" if word.endswith(("o", "ch")) else "s"))
    )


def remember(rng: Random, held: bool) -> Sample:
    """Two or three turns; the last asks for the name or the liking told in the first. Held out by both."""

    def propose() -> tuple[bool, tuple[str, str]]:
        name, like = rng.choice(NAMES), rng.choice(LIKES)
        return is_held("remember", name, like), (name, _likes(like))

    name, like = draw(held, propose)
    hello = Turn(
        rng.choice(INTRO).format(n=name, l=like), f"Nice to meet you, {name}!", f"The user is {name} and likes {like}."
    )
    turns = [hello]
    if rng.random() < 0.4:
        user, answer = rng.choice(
            (
                ("Are you well?", "Yes, I am well, thank you."),
                ("That is nice.", "Yes, it is."),
                ("Good.", "I am glad."),
                ("I am happy today.", "That is good to hear."),
            )
        )
        turns.append(Turn(user, answer, "I answer in a friendly way."))
    if rng.random() < 0.5:
        question = rng.choice(("What is my name?", "Do you know my name?", "Who am I?", "Tell me my name."))
        last = Turn(question, f"Your name is {name}.", f"The user said: my name is {name}.")
    else:
        question = rng.choice(("What do I like?", "Do you know what I like?", "Tell me what I like."))
        last = Turn(question, f"You like {like}.", f"The user said: I like {like}.")
    return Sample("remember", (*turns, last))


def persona(rng: Random, held: bool) -> Sample:
    """The system message says who the model is. Held out by name, mood and animal."""

    def propose() -> tuple[bool, tuple[str, str, str]]:
        parts = rng.choice(PET_NAMES + NAMES), rng.choice(MOODS), rng.choice(ANIMALS)
        return is_held("persona", *parts), parts

    name, mood, animal = draw(held, propose)
    place = rng.choice(PLACES)
    system = f"You are {name}, {with_article(mood)} {animal} who lives near the {place}."
    question, answer = rng.choice(
        (
            (("Who are you?", "Tell me who you are."), f"I am {name}, {with_article(mood)} {animal}."),
            (("What is your name?", "Tell me your name."), f"My name is {name}."),
            (("Where do you live?", "Tell me where you live."), f"I live near the {place}."),
            (("What animal are you?", "Which animal are you?"), f"I am {with_article(animal)}."),
        )
    )
    return single(
        "persona", rng.choice(question), answer, f"I am {name}, {with_article(mood)} {animal} near the {place}.", system
    )


MAKERS = {"reading": reading, "remember": remember, "persona": persona}
