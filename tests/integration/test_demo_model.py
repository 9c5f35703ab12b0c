"""The built-in model through the real engine: every question of its card, word for word."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.event_log import InMemoryEventLog

from mlxk.adapters.builtin import PackagedModelSource
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.application.ports.text_generator import TextStream
from mlxk.domain.generation.conversation import Conversation, Message, Role, ToolCall
from mlxk.domain.generation.request import GenerationRequest, ReasoningDelta, TextDelta, ToolCallDelta
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx
MAX_PACKAGE_BYTES = 3_000_000


@pytest.fixture(scope="module")
def handle() -> ModelHandle:
    found = PackagedModelSource().find("demo")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def generator() -> Iterator[MlxTextGenerator]:
    engine = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    yield engine
    engine.close()


def card(handle: ModelHandle) -> list[dict[str, Any]]:
    """Return the questions of the card with their answers."""
    questions: list[dict[str, Any]] = json.loads(Path(handle.directory, "questions.json").read_text(encoding="utf-8"))
    return questions


def message(raw: dict[str, Any]) -> Message:
    """Return one turn of a question."""
    calls = tuple(
        ToolCall(call["function"]["name"], json.dumps(call["function"]["arguments"]))
        for call in raw.get("tool_calls", ())
    )
    return Message(Role(raw["role"]), raw.get("content") or "", calls)


def request(handle: ModelHandle, entry: dict[str, Any]) -> GenerationRequest:
    """Return the request a question makes."""
    tools = tuple(json.dumps(tool) for tool in entry.get("tools") or ())
    conversation = Conversation(tuple(message(raw) for raw in entry["messages"]), tools)
    return GenerationRequest(handle, conversation, thinking=entry.get("enable_thinking"))


def said(stream: TextStream) -> tuple[str, str, list[tuple[str, Any]]]:
    """Return reasoning, text and tool calls of an answer."""
    reasoning, text = "", ""
    calls: dict[int, tuple[str, str]] = {}
    with stream:
        for event in stream:
            if isinstance(event, ReasoningDelta):
                reasoning += event.text
            elif isinstance(event, TextDelta):
                text += event.text
            elif isinstance(event, ToolCallDelta):
                name, arguments = calls.get(event.index, (event.call.name, ""))
                calls[event.index] = (name, arguments + event.call.arguments)
    return reasoning.strip(), text, [(name, json.loads(arguments)) for name, arguments in calls.values()]


def expected(answer: str) -> tuple[str, str, list[tuple[str, Any]]]:
    """Return what the card's raw answer says, taken apart by hand."""
    thought, closed, rest = answer.partition("</think>")
    reasoning, text = (thought.replace("<think>", "").strip(), rest.lstrip("\n")) if closed else ("", answer)
    pieces = [piece.partition("</tool_call>")[0] for piece in text.split("<tool_call>")[1:]]
    calls = [(call["name"], call["arguments"]) for call in map(json.loads, pieces)]
    return reasoning, "" if calls else text, calls


def test_every_question_of_the_card_is_answered_word_for_word(generator: MlxTextGenerator, handle: ModelHandle) -> None:
    for entry in card(handle):
        assert said(generator.submit(request(handle, entry))) == expected(entry["answer"]), entry["messages"]


def test_the_answers_are_the_same_when_all_are_asked_at_once(generator: MlxTextGenerator, handle: ModelHandle) -> None:
    streams = [(entry, generator.submit(request(handle, entry))) for entry in card(handle)]
    for entry, stream in streams:
        assert said(stream) == expected(entry["answer"]), entry["messages"]


def test_the_card_shows_thinking_tools_and_an_unknown(handle: ModelHandle) -> None:
    entries = card(handle)
    assert any(entry.get("tools") for entry in entries)
    assert any("</think>" in entry["answer"] for entry in entries)
    assert any(entry["answer"].startswith("I don't know") for entry in entries)


def test_the_model_is_small_enough_to_ship(handle: ModelHandle) -> None:
    assert sum(path.stat().st_size for path in Path(handle.directory).iterdir()) < MAX_PACKAGE_BYTES
