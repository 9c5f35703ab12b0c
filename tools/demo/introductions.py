"""The names the demo model can remember, and how users tell and ask for them."""

from __future__ import annotations

import random

from turns import Turn, asked

NAMES = (
    "Ada",
    "Alan",
    "Alice",
    "Anna",
    "Ben",
    "Bob",
    "Carol",
    "Clara",
    "Dan",
    "David",
    "Emma",
    "Eve",
    "Frank",
    "Grace",
    "Hana",
    "Ivan",
    "Jane",
    "John",
    "Ken",
    "Lena",
    "Leo",
    "Linus",
    "Lisa",
    "Maria",
    "Mia",
    "Noah",
    "Nora",
    "Olga",
    "Oscar",
    "Otto",
    "Paul",
    "Peter",
    "Rosa",
    "Sam",
    "Sara",
    "Tara",
    "Tim",
    "Tom",
    "Uma",
    "Vera",
    "Wes",
    "Yuri",
    "Zoe",
)
_INTRODUCTIONS = ("My name is {name}.", "I am {name}.", "I'm {name}.", "Hi, I'm {name}.", "Hello, my name is {name}.")
RECALLS = ("What is my name?", "What's my name?", "Who am I?", "Do you remember my name?", "Do you know my name?")
NO_NAME = "You have not told me your name yet."


def introduction(rng: random.Random, name: str) -> Turn:
    """Return a turn in which the user tells a name."""
    text = rng.choice(_INTRODUCTIONS).format(name=name)
    return asked(text, f"Nice to meet you, {name}!", f"The name of the user is {name}.")
