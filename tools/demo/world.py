"""A few facts about the world: capitals, opposites, colours, sounds, days, and words to repeat."""

from __future__ import annotations

import json

from items import Item
from small_talk import DAYS, MONTHS

CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "Greece": "Athens",
    "Poland": "Warsaw",
    "Austria": "Vienna",
    "Hungary": "Budapest",
    "Ireland": "Dublin",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Denmark": "Copenhagen",
    "Russia": "Moscow",
    "Ukraine": "Kyiv",
    "Turkey": "Ankara",
    "Egypt": "Cairo",
    "Kenya": "Nairobi",
    "Japan": "Tokyo",
    "China": "Beijing",
    "India": "New Delhi",
    "Thailand": "Bangkok",
    "Vietnam": "Hanoi",
    "Canada": "Ottawa",
    "Mexico": "Mexico City",
    "Brazil": "Brasilia",
    "Argentina": "Buenos Aires",
    "Chile": "Santiago",
    "Peru": "Lima",
    "Cuba": "Havana",
    "Australia": "Canberra",
    "Belgium": "Brussels",
    "Switzerland": "Bern",
    "England": "London",
    "Scotland": "Edinburgh",
}
OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "fast": "slow",
    "up": "down",
    "left": "right",
    "day": "night",
    "happy": "sad",
    "old": "new",
    "open": "closed",
    "light": "dark",
    "hard": "soft",
    "wet": "dry",
    "early": "late",
    "full": "empty",
    "high": "low",
    "rich": "poor",
    "strong": "weak",
    "true": "false",
}
SOUNDS = {
    "dog": "woof",
    "cat": "meow",
    "cow": "moo",
    "duck": "quack",
    "sheep": "baa",
    "pig": "oink",
    "lion": "roar",
    "bee": "buzz",
    "owl": "hoot",
    "horse": "neigh",
}
COLOURS = {
    "sky": "blue",
    "grass": "green",
    "snow": "white",
    "banana": "yellow",
    "strawberry": "red",
    "coal": "black",
    "carrot": "orange",
    "sun": "yellow",
    "tomato": "red",
    "sea": "blue",
}
WORDS = (
    "piano",
    "apple",
    "river",
    "stone",
    "cloud",
    "tiger",
    "window",
    "candle",
    "garden",
    "silver",
    "bridge",
    "forest",
    "rocket",
    "pencil",
    "lemon",
    "ocean",
    "mirror",
    "castle",
    "butter",
    "monkey",
)


def items() -> list[Item]:
    """Return everything the model knows about the world."""
    return [*_capitals(), *_opposites(), *_animals_and_colours(), *_calendar(), *_words()]


def _capitals() -> list[Item]:
    found = []
    for country, capital in CAPITALS.items():
        thought = f"The user asks for the capital of {country}. It is {capital}."
        found.append(
            Item(
                (
                    f"What is the capital of {country}?",
                    f"What's the capital of {country}?",
                    f"Capital of {country}?",
                    f"Tell me the capital of {country}.",
                    f"Which city is the capital of {country}?",
                    f"Name the capital of {country}.",
                ),
                f"The capital of {country} is {capital}.",
                thought,
                one_word=capital,
            )
        )
        found.append(
            Item(
                (
                    f"Give the capital of {country} as JSON.",
                    f"What is the capital of {country}? Answer in JSON.",
                    f"Capital of {country} as JSON",
                ),
                json.dumps({"country": country, "capital": capital}),
                f"The capital of {country} is {capital}. I answer in JSON.",
            )
        )
        found.append(
            Item(
                (f"In which country is {capital}?", f"Where is {capital}?"),
                f"{capital} is in {country}.",
                f"{capital} is the capital of {country}.",
                one_word=country,
                share=0.7,
            )
        )
    return found


def _opposites() -> list[Item]:
    pairs = [*OPPOSITES.items(), *((right, left) for left, right in OPPOSITES.items())]
    return [
        Item(
            (f"What is the opposite of {word}?", f"What's the opposite of {word}?", f"Opposite of {word}?"),
            f"The opposite of {word} is {other}.",
            f"The words {word} and {other} are opposites.",
            one_word=other,
        )
        for word, other in pairs
    ]


def _animals_and_colours() -> list[Item]:
    sounds = [
        Item(
            (f"What does a {animal} say?", f"What sound does a {animal} make?", f"How does a {animal} go?"),
            f"The {animal} says {sound}.",
            f"The user asks about the {animal}. It says {sound}.",
            one_word=sound,
        )
        for animal, sound in SOUNDS.items()
    ]
    colours = [
        Item(
            (f"What colour is the {thing}?", f"What color is the {thing}?", f"Which colour has the {thing}?"),
            f"The {thing} is {colour}.",
            f"The user asks about the {thing}. It is {colour}.",
            one_word=colour,
        )
        for thing, colour in COLOURS.items()
    ]
    return [*sounds, *colours]


def _calendar() -> list[Item]:
    found = []
    for kind, names in (("day", DAYS), ("month", MONTHS)):
        for now, following in zip(names, (*names[1:], names[0]), strict=True):
            found.append(
                Item(
                    (f"What {kind} comes after {now}?", f"Which {kind} comes after {now}?"),
                    f"After {now} comes {following}.",
                    f"The {kind} after {now} is {following}.",
                    one_word=following,
                )
            )
    return found


def _words() -> list[Item]:
    return [
        Item(
            (f"Say {word}.", f"Repeat the word {word}.", f"Say the word {word}.", f"Repeat: {word}"),
            word,
            f"I repeat the word {word}.",
            share=0.7,
        )
        for word in WORDS
    ]
