"""A grammar of short stories: a hero, a wish or a trouble, a helper, an end."""

from __future__ import annotations

from random import Random

from .vocabulary import ANIMALS, COLOURS, FOODS, GIRLS, MOODS, NAMES, OBJECTS, PET_NAMES, PLACES, plural, with_article

OPENINGS = (
    "Once upon a time there was {hero} named {n} who lived near the {p}.",
    "Once upon a time, {hero} named {n} lived by the {p}.",
    "There was once {hero} named {n}. {S} lived close to the {p}.",
    "In a small house by the {p} lived {hero} named {n}.",
    "One day, {hero} named {n} went for a walk to the {p}.",
    "Long ago, near the {p}, lived {hero} named {n}.",
)
WEATHER = (
    "The sun was warm and the sky was blue.", "It was a cold and windy morning.", "Soft rain fell on the leaves.",
    "Snow lay on the roofs and the air was still.", "The birds sang and the flowers were open.",
    "A grey cloud hung over the hills.", "It was a quiet evening and the first stars came out.",
)  # fmt: skip
LOST = (
    (
        "{n} had {c} {o} that {s} loved very much. One morning the {o} was gone. {S} looked under "
        "the bed and behind the door, but {s} could not find it."
    ),
    "{n} wanted to play with {P} {c2} {o}, but it was not in its box. {S} looked everywhere and felt sad.",
)
LOST_HELP = (
    '{f} came by and asked, "Why are you sad?" "I have lost my {o}," said {n}. "Then we will look together," said {f}.',
    '"Do not cry," said {f}, {P} friend. "I will help you look for the {o}." So they went out together.',
)
LOST_END = (
    "They walked to the {q} and looked behind an old tree. There it was! {n} hugged {f} and said thank you.",
    "In the {q}, under a big leaf, they saw something {c2}. It was the {o}! {n} jumped with joy.",
    "At the {q} they met an old owl who had kept the {o} safe. {n} thanked the owl and gave it {food1}.",
)
SHARE = (
    (
        "{n} had only {food1} left, and {s} was very hungry. Just then {f} came to the door. {f} "
        "had nothing to eat at all."
    ),
    (
        "{n} found {food1} on the way to the {q}. {S} wanted to eat it alone. Then {s} saw {f}, "
        "who looked hungry and cold."
    ),
)
SHARE_MID = (
    '{n} thought for a moment. "Half of it is for you," {s} said. {f} smiled and sat down.',
    '"Come in and eat with me," said {n}. They cut the {food} in two and ate it slowly.',
)
SHARE_END = (
    "The next day {f} came back with a basket full of {foods}. They had enough for the whole week.",
    "From that day on, {f} and {n} ate together every evening, and nobody was hungry.",
    "It tasted better than any meal before, because they shared it.",
)
LEARN = (
    "{n} wanted to learn how to {skill}. {S} tried once, but it did not work. {S} tried again and fell down.",
    "All the others could {skill}, but {n} could not. {S} was ashamed and hid in the {q}.",
)
LEARN_MID = (
    '{f} saw it and said, "Nobody can do it on the first day. Try a little every morning." So {n} tried every morning.',
    '"I will show you," said {f}. "Look, you must be calm and go step by step." {n} watched and tried again.',
)
LEARN_END = (
    "After seven days {n} could {skill} better than anyone near the {p}. {S} was very proud.",
    "At last it worked! {n} laughed and showed it to everyone in the {q}.",
    "Soon {n} could {skill}, and {s} began to teach the smaller ones.",
)
STORM = (
    (
        "One night a big storm came. The wind broke the roof of {P} house, and the rain came in. "
        "{n} was afraid and ran out."
    ),
    "In the afternoon the sky went dark and a storm began. {n} was far from home and did not know the way.",
)
STORM_MID = (
    "Then {s} saw a light. It was the lamp of {f}, who stood in the door and called {P} name.",
    '"Come here, quick!" called {f} from the {q}. {n} ran as fast as {s} could.',
)
STORM_END = (
    "They drank warm tea and waited until the storm was over. In the morning they mended everything together.",
    "Inside it was warm and dry. {f} told stories until {n} fell asleep. The next day the sun was back.",
)
FIND = (
    (
        "On the way {s} saw {c} {o} on the ground. It was not {P} own. {n} wanted to keep it, but "
        "{s} knew that someone was looking for it."
    ),
    'Near the {q}, {n} found {c} {o} in the grass. "Who lost this?" {s} asked, but nobody answered.',
)
FIND_MID = (
    "{S} asked at the {q}, and there sat {f} with tears in {fP} eyes.",
    'Then {s} met {f}, who was looking at the ground. "Are you looking for your {o}?" asked {n}.',
)
FIND_END = (
    '"That is my {o}!" said {f}. "You are an honest friend." And they went home together.',
    "{f} was so happy that {fs} gave {n} {food1}. Being honest felt good.",
)
MORALS = (
    "And they lived happily ever after.", "{n} never forgot that day.", "That night {n} slept very well.",
    "And so {n} learned that a friend is worth more than gold.", "From then on they were best friends.", "The end.",
    "{n} went home with a smile.",
)  # fmt: skip
SKILLS = (
    "swim",
    "fly a kite",
    "ride a bike",
    "sing",
    "dance",
    "climb a tree",
    "bake bread",
    "play the drum",
    "jump over the stream",
)
PLOTS = (
    (LOST, LOST_HELP, LOST_END),
    (SHARE, SHARE_MID, SHARE_END),
    (LEARN, LEARN_MID, LEARN_END),
    (STORM, STORM_MID, STORM_END),
    (FIND, FIND_MID, FIND_END),
)


def story(rng: Random, hero: tuple[str, str, str] | None = None) -> str:
    """Tell one story of about 100 words; `hero` is (mood, animal, name), drawn when None."""
    if hero is None:
        mood, animal, name = rng.choice(MOODS), rng.choice(ANIMALS), rng.choice(PET_NAMES)
        if rng.random() < 0.25:
            name = rng.choice(NAMES)
            animal = "girl" if name in GIRLS else "boy"
    else:
        mood, animal, name = hero
    she = animal == "girl" or (animal != "boy" and sum(map(ord, name + animal)) % 2 == 0)
    place, other = rng.sample(PLACES, 2)
    thing, food, colour = rng.choice(OBJECTS), rng.choice(FOODS), rng.choice(COLOURS)
    friend = rng.choice([n for n in PET_NAMES + NAMES if n != name])
    friend_kind = rng.choice([a for a in ANIMALS if a != animal])
    friend_she = rng.random() < 0.5
    uncounted = food in ("bread", "soup", "cheese", "honey", "rice", "corn")
    slots = {
        "hero": with_article(f"{mood} {animal}"), "n": name, "p": place, "q": other, "o": thing, "food": food,
        "s": "she" if she else "he", "S": "She" if she else "He", "P": "her" if she else "his",
        "c": with_article(colour), "c2": colour, "food1": f"some {food}" if uncounted else with_article(food),
        "foods": food if uncounted else plural(food), "f": f"{friend} the {friend_kind}",
        "fs": "she" if friend_she else "he", "fP": "her" if friend_she else "his", "skill": rng.choice(SKILLS),
    }  # fmt: skip
    plot = rng.choice(PLOTS)
    parts = [rng.choice(OPENINGS)]
    if rng.random() < 0.5:
        parts.append(rng.choice(WEATHER))
    parts += [rng.choice(step) for step in plot]
    parts.append(rng.choice(MORALS))
    return " ".join(part.format(**slots) for part in parts)
