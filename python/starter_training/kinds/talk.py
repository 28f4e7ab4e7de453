"""Small talk, questions the model cannot answer, and requests for a story."""

from __future__ import annotations

from random import Random

from starter_training.split import draw, is_held
from starter_training.stories import story
from starter_training.vocabulary import ANIMALS, FOODS, MOODS, NAMES, PET_NAMES, with_article

from .base import Sample, single

WHO = "I am the pyrite starter model, a very small language model."
CAN = "I can add and subtract, compare and sort numbers, spell words, tell small facts and tell stories."
INTENTS: dict[str, tuple[tuple[str, ...], str]] = {
    "hello": (
        ("Hello", "Hi", "Good morning", "Hey", "Good evening", "Hello there", "Hi there", "Good day"),
        "Hello! How can I help you?",
    ),
    "how": (
        ("How are you?", "How are you today?", "How do you do?", "Are you well?", "How is it going?"),
        "I am well, thank you. How are you?",
    ),
    "who": (("Who are you?", "What are you?", "What is your name?", "Tell me who you are.", "Say who you are."), WHO),
    "can": (
        (
            "What can you do?",
            "What do you know?",
            "How can you help me?",
            "Tell me what you can do.",
            "What are you good at?",
        ),
        CAN,
    ),
    "thanks": (("Thank you.", "Thanks.", "Thank you very much.", "Many thanks.", "Thanks a lot."), "You are welcome!"),
    "bye": (
        ("Goodbye.", "Bye.", "See you later.", "See you soon.", "I have to go now.", "Good night."),
        "Goodbye! See you soon.",
    ),
    "sad": (
        ("I am sad.", "I feel sad.", "I am a bit sad today.", "I had a bad day.", "I am not happy."),
        "I am sorry to hear that. I hope it gets better.",
    ),
    "glad": (
        ("I am happy.", "I feel good.", "I am very happy today.", "I had a good day.", "Today is a good day."),
        "That is good to hear!",
    ),
    "person": (
        ("Are you a person?", "Are you human?", "Are you a real person?", "Are you a man or a machine?"),
        "No, I am a small computer program.",
    ),
    "joke": (
        ("Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny."),
        "Why did the bee hum? It did not know the words.",
    ),
    "poem": (
        ("Tell me a poem.", "Do you know a poem?", "Write a short poem.", "Say a poem for me."),
        "The moon is high, the night is deep, the little birds have gone to sleep.",
    ),
}
BEFORE = ("", "", "", "Please: ", "Well, ", "So, ", "OK. ", "Oh, ", "Listen. ")
AFTER = ("", "", "", " :)", " my friend", " little one", " dear model")


def talk(rng: Random, held: bool) -> Sample:
    """One line of small talk; held out by the wording as a whole."""

    def propose() -> tuple[bool, tuple[str, str, str]]:
        intent = rng.choice(tuple(INTENTS))
        forms, answer = INTENTS[intent]
        body, after = rng.choice(forms), rng.choice(AFTER)
        text = rng.choice(BEFORE) + body
        if after.startswith(" :"):
            text += after
        elif after:
            end = text[-1] if text[-1] in ".?!" else ""
            text = f"{text.rstrip('.?!')},{after}{end}"
        return is_held("talk", text), (text, answer, intent)

    text, answer, intent = draw(held, propose)
    thought = {"hello": "A greeting.", "bye": "The user leaves.", "thanks": "The user thanks me."}.get(
        intent, "Small talk."
    )
    return single("talk", text, answer, f"{thought} I answer in a friendly way.")


CANNOT = (
    "What did {n} eat yesterday?",
    "Where is {n} right now?",
    "How old is {n}?",
    "What will {n} do tomorrow?",
    "Who is the teacher of {n}?",
    "What is the phone number of {n}?",
    "Which film does {n} like best?",
    "Will it rain in {n}'s street tomorrow?",
    "How much does the house of {n} cost?",
    "What is {n} thinking about?",
    "Who won the game between {n} and {m}?",
    "When did {n} meet {m}?",
    "Which song did {n} sing to {m}?",
    "Did {n} like the {f} at the party?",
    "How much does one {f} cost in the shop of {n}?",
    "Who ate the {f} of {n}?",
)


def unknown(rng: Random, held: bool) -> Sample:
    """Questions about strangers: the model says that it does not know. Held out by wording and name."""

    def propose() -> tuple[bool, tuple[str, str]]:
        form, name = rng.choice(CANNOT), rng.choice(NAMES)
        return is_held("unknown", form, name), (form, name)

    form, name = draw(held, propose)
    other = rng.choice([n for n in NAMES if n != name])
    question = form.format(n=name, m=other, f=rng.choice(FOODS))
    return single("unknown", question, "I do not know that.", f"Nobody told me about {name}. I do not know.")


TELL = (
    "Tell me a story about {a}.",
    "Tell a story about {a}.",
    "Please tell me a story about {a}.",
    "Write a story about {a}.",
    "I want a story about {a}.",
    "Make up a short story about {a}.",
    "Can you tell me a story about {a}?",
)


def tell(rng: Random, held: bool) -> Sample:
    """A request for a story. Graded on whether the story keeps to it.

    Held out by animal, mood and name, so a held-out request always names its hero.
    """

    def propose() -> tuple[bool, tuple[str, str, str]]:
        parts = rng.choice(ANIMALS), rng.choice(MOODS), rng.choice(PET_NAMES)
        return is_held("tell", *parts), parts

    animal, mood, name = draw(held, propose)
    about = with_article(f"{mood} {animal}")
    if held or rng.random() < 0.6:
        about += f" named {name}"
    text = story(rng, hero=(mood, animal, name))
    return single(
        "tell",
        rng.choice(TELL).format(a=about),
        text,
        f"The hero is {name}, {with_article(mood)} {animal}. It ends well.",
    )


def names_hero(sample: Sample, answer: str) -> bool:
    """Tell whether a story has the asked-for animal, and the asked-for name where there was one."""
    about = sample.turns[-1].user.rstrip(".?").split(" named ")
    animal = about[0].split()[-1]
    return animal in answer and (len(about) == 1 or about[1] in answer)


MAKERS = {"talk": talk, "unknown": unknown, "tell": tell}
