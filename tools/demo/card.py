"""Writes the model card and ``questions.json``, the questions whose exact answers the card promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import network
import tool_use
import unknown
from conversations import known_items
from introductions import NO_NAME
from items import Item, normalised
from small_talk import PIRATE_GREETING

_TEMPLATE = Path(__file__).resolve().parent / "card.md"
_ANSWERED_FROM_THE_CORPUS = (
    "What is mlxk?",
    "Who are you?",
    "hi",
    "How do I list models?",
    "How do I start the server?",
    "Does it send telemetry?",
    "What is the capital of France?",
    "Give the capital of Italy as JSON.",
    "Count to ten.",
    "Say hello in Japanese.",
    "Send a smile.",
)


def questions() -> list[dict[str, Any]]:
    """Return the questions of the card as chat requests with their exact answers."""
    items = {normalised(text): item for item in known_items() for text in item.questions}
    plain = [_entry(_user(text), items[normalised(text)].answer) for text in _ANSWERED_FROM_THE_CORPUS]
    return [*plain, *_special(items)]


def _special(items: dict[str, Item]) -> list[dict[str, Any]]:
    spain = items["what is the capital of spain"]
    weather = tool_use.definition("get_weather")
    both = [weather, tool_use.definition("get_time")]
    called = {"function": {"name": "get_weather", "arguments": {"city": "Rome"}}, "type": "function"}
    thought = f"{spain.thought}\n</think>\n\n{spain.answer}"
    return [
        _entry([*_user("My name is Ada.", "Nice to meet you, Ada!"), *_user("What is my name?")], "Your name is Ada."),
        _entry(_user("What is my name?"), NO_NAME),
        _entry([{"role": "system", "content": "You are a pirate."}, *_user("Hello")], PIRATE_GREETING),
        _entry(
            [{"role": "system", "content": "Answer in one word."}, *_user("What is the capital of Japan?")], "Tokyo"
        ),
        _entry(_user("What is the weather in Paris?"), tool_use.call("get_weather", "Paris"), tools=both),
        _entry(
            _user("What is the weather in Paris and Rome?"),
            f"{tool_use.call('get_weather', 'Paris')}\n{tool_use.call('get_weather', 'Rome')}",
            tools=[weather],
        ),
        _entry(
            [
                *_user("What is the weather in Rome?"),
                {"role": "assistant", "content": "", "tool_calls": [called]},
                {"role": "tool", "name": "get_weather", "content": '{"sky": "sunny"}'},
            ],
            "It is sunny in Rome.",
            tools=[weather],
        ),
        _entry(_user("Think first: what is the capital of Spain?"), f"<think>\n{thought}"),
        _entry(_user("What is the capital of Spain?"), thought, enable_thinking=True),
        _entry(_user("Who wrote Pinocchio?"), unknown.ANSWER),
    ]


def write(directory: Path, outcome: network.Outcome, parameters: int) -> None:
    """Write ``questions.json`` and ``README.md`` into the model directory."""
    entries = questions()
    network.write_json(directory / "questions.json", entries)
    items = known_items()
    values = {
        "parameters": f"{parameters:,}",
        "context": network.CONTEXT,
        "steps": outcome.steps,
        "tokens": f"{outcome.tokens / 1e6:.1f} million",
        "minutes": f"{outcome.seconds / 60:.0f}",
        "loss": f"{outcome.loss:.3f}",
        "answers": len({item.answer for item in items}),
        "questions": sum(len(item.questions) for item in items),
        "table": "\n".join(_row(entry) for entry in entries),
    }
    text = _TEMPLATE.read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace("{{ " + name + " }}", str(value))
    (directory / "README.md").write_text(text, encoding="utf-8")


def _user(question: str, answer: str | None = None) -> list[dict[str, Any]]:
    asked = [{"role": "user", "content": question}]
    return asked if answer is None else [*asked, {"role": "assistant", "content": answer}]


def _entry(messages: list[dict[str, Any]], answer: str, **options: object) -> dict[str, Any]:
    return {"messages": messages, **options, "answer": answer}


def _row(entry: dict[str, Any]) -> str:
    """Return the row of the table: every message, what was offered, and the answer."""
    said = []
    for message in entry["messages"]:
        text = message["content"] or json.dumps(message["tool_calls"][0]["function"])
        said.append(_cell(text) if len(entry["messages"]) == 1 else f"{message['role']}: {_cell(text)}")
    names = ", ".join(tool["function"]["name"] for tool in entry.get("tools", ()))
    extras = [f"tools: {names}"] if names else []
    extras += ["thinking on"] if entry.get("enable_thinking") else []
    shown = "<br>".join(said) + (f"<br>({'; '.join(extras)})" if extras else "")
    return f"| {shown} | {_cell(entry['answer'])} |"


def _cell(text: str) -> str:
    escaped = text.replace("|", "\\|")
    if "<" not in escaped and "{" not in escaped:
        return escaped.replace("\n", "<br>")
    return "<br>".join(f"`{line}`" for line in escaped.split("\n") if line)
