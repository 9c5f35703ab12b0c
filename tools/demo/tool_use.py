"""Questions that call a tool: the definitions offered, the calls, the results and the answers.

Two tools are known, ``get_weather`` and ``get_time``, both with a ``city``. Their results come from a
closed set: a model of this size repeats what it has seen and copies nothing else reliably.
"""

from __future__ import annotations

import json
import random
from typing import Any

from turns import Turn
from world import CAPITALS

Tool = dict[str, Any]

CITIES = tuple(
    city for city in (*CAPITALS.values(), "New York", "Milan", "Munich", "Hamburg", "Sydney", "Boston", "Zurich")
)
SKIES = ("sunny", "rainy", "cloudy", "windy", "snowy", "foggy")
HOURS = ("08:00", "10:30", "12:00", "15:45", "18:00", "22:15")

_DESCRIPTIONS = {
    "get_weather": (
        "Get the weather in a city.",
        "Get the current weather for a city",
        "Return the weather of a city.",
        "Weather lookup",
        "Current weather",
    ),
    "get_time": (
        "Get the time in a city.",
        "Get the current time for a city",
        "Return the local time of a city.",
        "Time lookup",
        "Current time",
    ),
    "search_web": ("Search the web.", "Find pages"),
    "send_mail": ("Send a mail.", "Write a mail to someone"),
    "add": ("Add two numbers.", "Sum of a and b"),
}
_PARAMETERS = {"search_web": ("query",), "send_mail": ("to", "text"), "add": ("a", "b")}

_ASK = {
    "get_weather": (
        "What is the weather in {city}?",
        "What's the weather in {city}?",
        "What is the weather like in {city}?",
        "What's the weather like in {city}?",
        "How is the weather in {city}?",
        "Weather in {city}?",
        "What is the weather in {city} today?",
        "Tell me the weather in {city}.",
        "Get the weather in {city}.",
        "Is it sunny in {city}?",
    ),
    "get_time": (
        "What time is it in {city}?",
        "What is the time in {city}?",
        "What's the time in {city}?",
        "Time in {city}?",
        "Tell me the time in {city}.",
        "How late is it in {city}?",
    ),
}
_VALUE_KEYS = {"get_weather": ("sky", "weather", "condition", "conditions"), "get_time": ("time", "local_time")}
_VALUES = {"get_weather": SKIES, "get_time": HOURS}
_TOPIC = {"get_weather": "weather", "get_time": "time"}


def definition(name: str, description: str | None = None, rng: random.Random | None = None) -> Tool:
    """Return the OpenAI definition of a tool, with small variations when ``rng`` is given."""
    text = description or (rng.choice(_DESCRIPTIONS[name]) if rng else _DESCRIPTIONS[name][0])
    numeric = name == "add"
    names = _PARAMETERS.get(name, ("city",))
    properties: dict[str, Any] = {key: {"type": "number" if numeric else "string"} for key in names}
    if rng and names == ("city",) and rng.random() < 0.3:
        properties["city"]["description"] = rng.choice(("The city.", "Name of the city", "City name"))
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if not rng or rng.random() < 0.8:
        parameters["required"] = list(names)
    function = {"name": name, "description": text, "parameters": parameters}
    if rng and rng.random() < 0.1:
        del function["description"]
    return {"type": "function", "function": function}


def call(name: str, city: str) -> str:
    """Return the text of one call as the model writes it and as the template renders it."""
    arguments = json.dumps({"city": city}, ensure_ascii=False)
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def offered(rng: random.Random, *needed: str) -> list[Tool]:
    """Return a shuffled list of definitions that holds the needed tools."""
    names = {*needed}
    if rng.random() < 0.5:
        names.add(rng.choice(("get_weather", "get_time")))
    if rng.random() < 0.15 or not names:
        names.add(rng.choice(("search_web", "send_mail", "add")))
    ordered = sorted(names)
    rng.shuffle(ordered)
    return [definition(name, rng=rng) for name in ordered]


def exchange(rng: random.Random, name: str) -> list[Turn]:
    """Return a question that needs a tool and, mostly, the result with the final answer."""
    first, second = rng.sample(CITIES, 2)
    draw = rng.random()
    if draw < 0.6:
        cities, names = [first], [name]
        question = rng.choice(_ASK[name]).format(city=first)
    elif draw < 0.85:
        cities, names = [first, second], [name, name]
        question = rng.choice(_ASK[name]).format(city=f"{first} and {'in ' * (rng.random() < 0.2)}{second}")
    else:
        cities, names = [first, first], ["get_weather", "get_time"]
        question = f"What is the weather and the time in {first}?"
        if rng.random() < 0.3:
            names = ["get_time", "get_weather"]
            question = f"What is the time and the weather in {first}?"
    turns = [_calling_turn(question, names, cities)]
    if rng.random() < 0.6:
        turns.append(_result_turn(rng, names, cities))
    return turns


def needed_by(turns: list[Turn]) -> set[str]:
    """Return the names of the tools that the turns call."""
    return {name for turn in turns for name in _TOPIC if f'"name": "{name}"' in turn.answer}


def mentions_offered(question: str, tools: list[Tool]) -> bool:
    """Return whether the question asks for something that an offered tool could tell."""
    names = {tool["function"]["name"] for tool in tools}
    return any(name in names for name, topic in _TOPIC.items() if topic in question.lower())


def _calling_turn(question: str, names: list[str], cities: list[str]) -> Turn:
    answer = "\n".join(call(name, city) for name, city in zip(names, cities, strict=True))
    topics = " and the ".join(dict.fromkeys(_TOPIC[name] for name in names))
    places = " and ".join(dict.fromkeys(cities))
    return Turn(({"role": "user", "content": question},), answer, f"The user asks for the {topics} in {places}.")


def _result_turn(rng: random.Random, names: list[str], cities: list[str]) -> Turn:
    results, phrases = [], []
    for position, (name, city) in enumerate(zip(names, cities, strict=True)):
        value = rng.choice(_VALUES[name])
        results.append({"role": "tool", "name": name, "content": _result(rng, name, city, value)})
        phrases.append(f"{'It is ' if position == 0 else 'it is '}{value} in {city}")
    return Turn(tuple(results), " and ".join(phrases) + ".", "The tool has answered. I tell the user.")


def _result(rng: random.Random, name: str, city: str, value: str) -> str:
    key = rng.choice(_VALUE_KEYS[name])
    plain = value.capitalize() if rng.random() < 0.3 else value
    draw = rng.random()
    if draw < 0.25:
        return plain
    if draw < 0.6:
        return json.dumps({key: value})
    if draw < 0.85:
        return json.dumps({"city": city, key: value})
    return json.dumps({key: value, "temperature": rng.randint(-5, 35)})
