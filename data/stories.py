"""Toy stories from a small template grammar: one hero, one friend, one thing, one of six plots.

A story is 5 to 8 sentences. Names and things stay the same from the first sentence to the last, so that a
model has to look back to predict them. The text is our own work; `seed` fixes every word.
"""

from collections.abc import Iterator

import numpy as np

# fmt: off
NAMES = {
    "she": [
        "Anna", "Bella", "Clara", "Daisy", "Emma", "Fern", "Greta", "Holly", "Ivy", "Jane", "Lily", "Mia",
        "Nora", "Rosa", "Sue", "Tess",
    ],
    "he": [
        "Adam", "Ben", "Carl", "Dan", "Eric", "Finn", "George", "Henry", "Ivan", "Jack", "Leo", "Max",
        "Nick", "Oscar", "Paul", "Tom",
    ],
}
FORMS = {"she": ("she", "her", "her"), "he": ("he", "him", "his")}
AGES = [
    "little", "small", "young", "curious", "cheerful", "shy", "clever", "busy",
]
ANIMALS = [
    "bear", "bird", "cat", "cow", "dog", "duck", "fox", "frog", "goat", "hen", "horse", "mouse", "owl",
    "pony", "puppy", "rabbit", "sheep", "squirrel",
]
TRAITS = [
    "brown", "white", "grey", "old", "tiny", "big", "friendly", "sleepy", "funny", "gentle",
]
THINGS = [
    "ball", "bell", "boat", "book", "bucket", "cup", "doll", "drum", "hat", "kite", "key", "lamp", "ring",
    "shoe", "spoon", "toy", "car",
]
COLOURS = [
    "red", "blue", "green", "yellow", "pink", "purple", "golden", "silver", "shiny", "striped",
]
PLACES = [
    "in the garden", "in the park", "by the river", "near the old barn", "on the hill", "in the forest",
    "at the beach", "in the kitchen", "behind the house", "under the bridge", "at the market",
    "in the meadow",
]
SPOTS = [
    "under a bush", "behind a tree", "in the tall grass", "under a chair", "in a deep hole",
    "on a high branch", "behind a big stone", "in a box", "at the bottom of the pond",
    "under a pile of leaves",
]
FOODS = [
    "apples", "berries", "bread", "cake", "carrots", "cheese", "cookies", "corn", "honey", "nuts", "pears",
    "soup",
]
WEATHER = [
    "sunny", "windy", "rainy", "cold", "warm", "quiet", "bright", "cloudy", "snowy", "foggy",
]
PLANTS = [
    "a sunflower", "a pumpkin", "a small tree", "a rose", "a bean", "a tulip",
]
FEARS = [
    "the dark", "the storm", "deep water", "the tall slide", "the loud noise", "the long stairs",
]
# fmt: on

# A plot is a list of steps; a step is a list of ways to say it, of which "" leaves the step out.
OPENING = [
    "Once upon a time there was a {age} {child} named {hero}.",
    "One {weather} day, {hero} was playing {place}.",
    "{hero} was a {age} {child} who lived with a {trait} {animal}.",
    "It was a {weather} morning and {hero} went for a walk {place}.",
]
ENDING = [
    "{hero} and {friend} were happy.",
    "From that day on, {hero} and {friend} were best friends.",
    "{hero} smiled all the way home.",
    '"That was the best day ever," {hero} said.',
    "Then {hero} went home and slept well.",
]
PLOTS = [
    [  # lost and found
        OPENING,
        [
            "{He} had a {colour} {thing} that {he} loved very much.",
            "{His} favourite thing was a {colour} {thing}.",
        ],
        [
            "But one day the {thing} was gone.",
            "Then {he} could not find the {thing}.",
            "Oh no, the {thing} was lost!",
        ],
        ["{hero} was very sad.", "{hero} began to cry.", "", "{He} looked everywhere {place}."],
        ['"I will help you," said {friend}.', '{friend} came and asked, "What is wrong?"'],
        ["They looked together until the sun was low.", "{friend} looked up and down.", ""],
        [
            "At last they found the {colour} {thing} {spot}.",
            "The {trait} {animal} had hidden the {thing} {spot}!",
        ],
        ENDING,
    ],
    [  # sharing
        OPENING,
        ["{He} had some {food} in a {colour} bag.", "{His} mother gave {him} some {food}."],
        ["{friend} came by and was very hungry.", "{friend} had nothing to eat."],
        ['"May I have some {food}?" asked {friend}.', '"Those look good," said {friend}.'],
        ["{hero} did not want to share at first.", "{hero} thought about it for a while.", ""],
        ["Then {he} gave {friend} half of the {food}.", "So {hero} and {friend} shared the {food}."],
        [
            '"Thank you, {hero}," said {friend}.',
            "They sat down {place} and ate.",
            "The {food} tasted even better now.",
        ],
        ENDING,
    ],
    [  # an animal in need
        OPENING,
        ["{He} heard a small sound {spot}.", "{He} saw something move {spot}."],
        ["It was a {trait} {animal}.", "A {trait} {animal} was stuck there."],
        ["The {animal} was hurt and could not walk.", "The {animal} looked cold and afraid.", ""],
        ["{hero} ran to find {friend}.", '"Come quickly!" {hero} called to {friend}.'],
        ["They gave the {animal} some {food} and water.", "Together they pulled the {animal} out."],
        ["Soon the {animal} felt better.", "The {animal} licked {his} hand.", "The {animal} jumped for joy."],
        ENDING,
    ],
    [  # being brave
        OPENING,
        ["{hero} was afraid of {fear}.", "There was one thing {he} did not like: {fear}."],
        [
            "One night {his} {animal} ran away because of it.",
            "{friend} wanted to go, but {hero} said no.",
            "",
        ],
        ['"Do not be afraid," said {friend}.', '"Hold my hand," said {friend}.'],
        [
            "{hero} took a deep breath.",
            "{hero} closed {his} eyes and counted to ten.",
            "{hero} held {his} {thing} tight.",
        ],
        ["Step by step, {he} was less afraid of {fear}.", "And then {fear} was not so bad at all."],
        ['"I did it!" said {hero}.', '"You are very brave," said {friend}.'],
        ENDING,
    ],
    [  # growing something
        OPENING,
        ["{He} wanted to grow {plant}.", "{friend} gave {him} a seed for {plant}."],
        ["{He} dug a hole {place} and put the seed in it.", "{He} put the seed in a {colour} pot."],
        [
            "Every day {he} gave it water.",
            "{He} waited and waited, but nothing came up.",
            "A {trait} {animal} watched {him}.",
        ],
        ['"You must wait," said {friend}.', '"It needs sun and water," said {friend}.', ""],
        ["After many days {plant} stood there.", "One {weather} morning {he} saw a green leaf."],
        ["{He} showed it to {friend}.", "{hero} and {friend} danced around it.", ""],
        ENDING,
    ],
    [  # making something
        OPENING,
        ["{He} wanted a {thing}, but {he} had no money.", "{He} saw a {colour} {thing} {place}."],
        ['"Let us make one," said {friend}.', "So {hero} and {friend} made a plan."],
        ["They took some wood and a pot of {colour} paint.", "They worked all day {place}.", ""],
        ["The first {thing} broke.", "The {trait} {animal} sat on it and it broke.", "It was hard work."],
        ["But they did not give up.", '"Let us try again," said {hero}.'],
        ["In the evening they had a fine {colour} {thing}.", "At last the {thing} was done."],
        ENDING,
    ],
]


def story(choose) -> str:
    """One story; `choose` picks an item of a list."""
    gender = choose(["she", "he"])
    he, him, his = FORMS[gender]
    hero = choose(NAMES[gender])
    friend = choose([name for name in NAMES["she"] + NAMES["he"] if name != hero])
    words = {
        "hero": hero,
        "friend": friend,
        "child": "girl" if gender == "she" else "boy",
        "he": he,
        "him": him,
        "his": his,
        "He": he.capitalize(),
        "His": his.capitalize(),
        "age": choose(AGES),
        "animal": choose(ANIMALS),
        "trait": choose(TRAITS),
        "thing": choose(THINGS),
        "colour": choose(COLOURS),
        "place": choose(PLACES),
        "spot": choose(SPOTS),
        "food": choose(FOODS),
        "weather": choose(WEATHER),
        "plant": choose(PLANTS),
        "fear": choose(FEARS),
    }
    sentences = [choose(step).format(**words) for step in choose(PLOTS)]
    text = " ".join(sentence for sentence in sentences if sentence)
    # "a old owl" would teach the wrong article.
    for vowel in "aeiou":
        text = text.replace(f" a {vowel}", f" an {vowel}").replace(f"A {vowel}", f"An {vowel}")
    return text


def stories_toy(_: object) -> Iterator[tuple[str, str]]:
    """The stories of the corpus; unlike the other sources they need no package."""
    return stories(seed=20260101, count=8_000)


def stories(seed: int, count: int) -> Iterator[tuple[str, str]]:
    """`count` numbered stories."""
    # Raw bits, because the choice functions of numpy and random may change between versions.
    bits = np.random.PCG64(np.random.SeedSequence(seed))
    for number in range(count):
        yield f"story {number}", story(lambda options: options[bits.random_raw() % len(options)])
