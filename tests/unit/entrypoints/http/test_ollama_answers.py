"""Ollama's renderers: what is streamed and what comes in one piece say the same."""

import datetime
import json
from functools import partial
from random import Random
from typing import Any

import pytest
from doubles.clock import InMemoryClock
from serving.ollama import joined, lines_of
from serving.written_answers import events as written_events

from mlxk.domain.errors import ExecutionError
from mlxk.domain.generation.conversation import Conversation, ToolCall
from mlxk.domain.generation.request import (
    Finished,
    FinishReason,
    GenerationEvent,
    GenerationRequest,
    ReasoningDelta,
    TextDelta,
    Timings,
    TokenAlternative,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.entrypoints.http.generation.renderer import RendererFactory, ResponseContext, StreamWriter, WholeWriter
from mlxk.entrypoints.http.ollama.renderer import ChatLines, GenerateLines
from mlxk.entrypoints.http.openai.renderer import MessageOptions

LETTERS = 'abc \n"\\🙂é世'
NOW = datetime.datetime(2026, 11, 28, 12, 0, 0, 123456, datetime.UTC)
CONTEXT = ResponseContext("r1", NOW, "m:latest", "fp_0", 1, 1)
END = Finished(FinishReason.STOP, Usage(12, 3, 5, 1), Timings(0.5, 0.25, 2.0, 0.125))
HANDLE = ModelHandle("m", "/m", Origin.CACHE)


class Recorder:
    """A body that keeps what was written."""

    def __init__(self) -> None:
        self.data = b""
        self.finished = 0

    def write(self, data: bytes) -> bool:
        """Keep."""
        self.data += data
        return True

    def finish(self) -> None:
        """Count."""
        self.finished += 1


def renderer(kind: type[ChatLines | GenerateLines], **options: Any) -> RendererFactory:
    """Return the renderer of a kind, with a clock that stands still."""
    return partial(kind, options=MessageOptions(**options), clock=InMemoryClock(NOW))


CHAT, GENERATE = renderer(ChatLines), renderer(GenerateLines)


def streamed(make: RendererFactory, events: list[GenerationEvent], path: str = "/api/chat") -> list[Any]:
    """Return the lines of a stream of some events."""
    body = Recorder()
    writer = StreamWriter(make(CONTEXT), body)
    writer.open()
    for event in events:
        writer.events(0, [event])
    writer.keep_alive()
    writer.close([event for event in events if isinstance(event, Finished)])
    assert body.finished == 1
    return lines_of(path, body.data)


def whole(make: RendererFactory, events: list[GenerationEvent]) -> Any:
    """Return the document of the same events."""
    writer = WholeWriter(make(CONTEXT), 1)
    writer.events(0, events)
    writer.close([event for event in events if isinstance(event, Finished)])
    return json.loads(writer.wait())


def drawn(seed: int) -> list[GenerationEvent]:
    """Return the events of an answer drawn from a seed: thoughts, text and tokens, then calls, then the end."""
    random = Random(seed)

    def text() -> str:
        return "".join(random.choices(LETTERS, k=random.randint(1, 6)))

    def token() -> TokenLogprob:
        alternatives = tuple(TokenAlternative(text(), b"x", -1.0) for _ in range(random.randint(0, 2)))
        return TokenLogprob(TokenAlternative(text(), text().encode(), -random.random()), alternatives)

    kinds = [
        lambda: TextDelta(text()),
        lambda: TextDelta(text(), (token(), token())),
        lambda: ReasoningDelta(text()),
    ]
    events: list[GenerationEvent] = [random.choice(kinds)() for _ in range(random.randint(0, 12))]
    for index in range(random.randint(0, 2)):
        arguments = json.dumps({text(): text()})
        cut = random.randint(0, len(arguments))
        events.append(ToolCallDelta(index, ToolCall(text(), arguments[:cut], f"call_{index}")))
        events.append(ToolCallDelta(index, ToolCall("", arguments[cut:], "")))
    reason = random.choice([FinishReason.STOP, FinishReason.LENGTH])
    return [*events, Finished(reason, Usage(*random.choices(range(99), k=4)), Timings(0.1, 0.2, random.random()))]


def test_a_streamed_answer_and_one_in_one_piece_say_the_same() -> None:
    for seed in range(120):
        events = drawn(seed)
        assert joined(streamed(CHAT, events)) == whole(CHAT, events)
        for raw in (False, True):
            make = partial(GENERATE, raw=raw)
            assert joined(streamed(make, events, "/api/generate")) == whole(make, events)


def test_so_do_answers_that_were_parsed_from_what_models_write() -> None:
    tools = ('{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}',)
    for seed in range(120):
        settings = GenerationSettings(seed=seed, stop=("END",) if seed % 2 else ())
        prompt = Conversation((), tools if seed % 3 else ())
        events = written_events(GenerationRequest(HANDLE, prompt, settings))
        make = renderer(ChatLines, stops=bool(settings.stop))
        assert joined(streamed(make, events)) == whole(make, events)


def test_durations_are_nanoseconds_and_decoding_stands_alone() -> None:
    *_, last = streamed(CHAT, [TextDelta("a"), END])
    assert last == {
        "model": "m:latest",
        "created_at": "2026-11-28T12:00:00.123456Z",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "stop",
        "total_duration": 2_875_000_000,
        "load_duration": 500_000_000,
        "prompt_eval_count": 12,
        "prompt_eval_duration": 250_000_000,
        "eval_count": 3,
        "eval_duration": 2_000_000_000,
    }


def test_every_line_is_a_document_also_those_that_fill_silence() -> None:
    first, text, silent, _ = streamed(CHAT, [TextDelta("a"), END])
    assert first == silent == {**text, "message": {"role": "assistant", "content": ""}}
    assert text["message"] == {"role": "assistant", "content": "a"}


def test_a_call_comes_whole_with_its_arguments_as_an_object() -> None:
    events: list[GenerationEvent] = [
        ToolCallDelta(0, ToolCall("add", "", "c1")),
        ToolCallDelta(0, ToolCall("", '{"a"', "")),
        ToolCallDelta(0, ToolCall("", ": 1}", "")),
        ToolCallDelta(1, ToolCall("now", "{}", "c2")),
        END,
    ]
    lines = [line["message"] for line in streamed(CHAT, events) if "tool_calls" in line["message"]]
    calls = [call for line in lines for call in line["tool_calls"]]
    assert [len(line["tool_calls"]) for line in lines] == [1, 1]
    assert calls == [
        {"id": "c1", "function": {"index": 0, "name": "add", "arguments": {"a": 1}}},
        {"id": "c2", "function": {"index": 1, "name": "now", "arguments": {}}},
    ]
    assert streamed(CHAT, events)[-1]["done_reason"] == "stop"


def test_half_a_surrogate_pair_in_arguments_is_replaced() -> None:
    events: list[GenerationEvent] = [ToolCallDelta(0, ToolCall("add", r'{"a": "\ud83d"}', "c1")), END]
    assert whole(CHAT, events)["message"]["tool_calls"][0]["function"]["arguments"] == {"a": "\ufffd"}


@pytest.mark.parametrize(("arguments", "shown"), [('{"a": ', {"arguments": '{"a": '}), ("[1]", {"arguments": [1]})])
def test_arguments_that_are_no_object_are_the_only_entry_of_one(arguments: str, shown: Any) -> None:
    events: list[GenerationEvent] = [ToolCallDelta(0, ToolCall("add", arguments, "c1")), END]
    assert whole(CHAT, events)["message"]["tool_calls"][0]["function"]["arguments"] == shown
    assert joined(streamed(CHAT, events)) == whole(CHAT, events)


def test_a_stop_string_that_cuts_json_is_a_limit() -> None:
    make = renderer(ChatLines, stops=True, json_text=True)
    for text, reason in (('{"a": 1}', "stop"), ('{"a": ', "length")):
        assert whole(make, [TextDelta(text), END])["done_reason"] == reason


@pytest.mark.parametrize("text", ['"', "\\", "\n", "\r\n", "🙂", "\u2028", "\x00", "%s", "{}"])
def test_any_text_survives_the_framing(text: str) -> None:
    assert joined(streamed(CHAT, [TextDelta(text), END]))["message"]["content"] == text
    assert joined(streamed(GENERATE, [TextDelta(text), END], "/api/generate"))["response"] == text


def test_a_failure_is_one_line_and_nothing_follows() -> None:
    body = Recorder()
    writer = StreamWriter(CHAT(CONTEXT), body)
    writer.open()
    writer.fail(ExecutionError("the model failed", hint="Try again."))
    assert lines_of("/api/chat", body.data)[1:] == [{"error": "the model failed. Try again."}]
    assert body.finished == 1
