"""Messages: a stream put together as a client does it is the message in one piece, and its frames are as documented."""

import datetime
import json
import random
from typing import Any

import pydantic_core
import pytest
from serving import contract
from serving.messages import frames, put_together

from mlxk.domain.errors import ExecutionError, QueueFullError, ServerShutdownError
from mlxk.domain.generation.conversation import ToolCall
from mlxk.domain.generation.request import (
    Finished,
    FinishReason,
    GenerationEvent,
    ReasoningDelta,
    TextDelta,
    Timings,
    ToolCallDelta,
    Usage,
)
from mlxk.entrypoints.http.anthropic.conversation import own_call_id, shown_call_id
from mlxk.entrypoints.http.anthropic.renderer import MessagesRenderer, ShownParts, arguments_of
from mlxk.entrypoints.http.generation.renderer import ResponseContext
from mlxk.entrypoints.http.openai.renderer import MessageOptions

LETTERS = 'abc \n"\\🙂é世{}[],:'


def finished(
    reason: FinishReason = FinishReason.STOP, stop: str | None = None, *, window_full: bool = False
) -> Finished:
    """Return an end."""
    return Finished(
        reason, Usage(30, 12, 7, 4), Timings(0, 0, 0), stop_sequence=stop, window_full=window_full
    )  # fmt: skip


def drawn(seed: int) -> list[GenerationEvent]:
    """Return the events of an answer drawn from a seed: reasoning, text and calls in any order, cut or not."""
    chance = random.Random(seed)

    def text(most: int = 6) -> str:
        return "".join(chance.choices(LETTERS, k=chance.randint(1, most)))

    events: list[GenerationEvent] = []
    calls = 0
    for _ in range(chance.randint(0, 8)):
        kind = chance.choice(["text", "reasoning", "call"])
        if kind == "call":
            arguments = json.dumps({text(3): text() for _ in range(chance.randint(0, 3))}, ensure_ascii=False)
            events.append(ToolCallDelta(calls, ToolCall("look", "", f"call_{calls:024x}")))
            while arguments:
                size = chance.randint(1, 9)
                events.append(ToolCallDelta(calls, ToolCall("", arguments[:size], "")))
                arguments = arguments[size:]
                if chance.random() < 0.02:
                    break
            calls += 1
        else:
            made = TextDelta if kind == "text" else ReasoningDelta
            events += [made(text()) for _ in range(chance.randint(1, 3))]
    ends = [finished(), finished(stop="x"), finished(FinishReason.LENGTH)]
    return [*events, chance.choice([*ends, finished(FinishReason.LENGTH, window_full=True)])]


def context() -> ResponseContext:
    """Return facts about a response."""
    return ResponseContext("r1", datetime.datetime.fromtimestamp(1, datetime.UTC), "m", "fp_0", 1, 1, 30)


def renderer(shown: ShownParts = ShownParts(), **options: Any) -> MessagesRenderer:  # noqa: B008 - frozen
    """Return a renderer."""
    return MessagesRenderer(context(), MessageOptions(**options), shown)


def streamed(it: MessagesRenderer, events: list[GenerationEvent]) -> list[Any]:
    """Return the events of a stream."""
    last = events[-1]
    assert isinstance(last, Finished)
    body = it.opening() + it.keep_alive() + b"".join(it.event(0, event) for event in events) + it.closing([last])
    return frames(body)


def whole(it: MessagesRenderer, events: list[GenerationEvent]) -> dict[str, Any]:
    """Return a message in one piece, held against the contract."""
    last = events[-1]
    assert isinstance(last, Finished)
    message: dict[str, Any] = json.loads(it.whole([events], [last]))
    assert contract.faults("/components/schemas/MessagesAnswer", message) == []
    return message


@pytest.mark.parametrize("shown", [ShownParts(), ShownParts(thinking=False), ShownParts(answer=False)])
@pytest.mark.parametrize("one_call", [False, True])
def test_a_streamed_message_and_one_in_one_piece_say_the_same(shown: ShownParts, one_call: bool) -> None:
    for seed in range(150):
        events = drawn(seed)
        first = put_together(streamed(renderer(shown, one_call=one_call), events))
        second = whole(renderer(shown, one_call=one_call), events)
        del first["id"], second["id"]
        assert first == second


def test_nothing_of_an_answer_is_lost_or_moved() -> None:
    for seed in range(300):
        events = drawn(seed)
        content = whole(renderer(), events)["content"]
        for made, kind, field in ((TextDelta, "text", "text"), (ReasoningDelta, "thinking", "thinking")):
            expected = "".join(event.text for event in events if isinstance(event, made))  # type: ignore[attr-defined]
            assert "".join(block[field] for block in content if block["type"] == kind) == expected
        ids = [event.call.id for event in events if isinstance(event, ToolCallDelta) and event.begins]
        assert [own_call_id(block["id"]) for block in content if block["type"] == "tool_use"] == ids


def test_the_frames_of_a_stream_in_their_order() -> None:
    events: list[GenerationEvent] = [
        ReasoningDelta("hm"),
        TextDelta("yes"),
        ToolCallDelta(0, ToolCall("f", "{}", "call_1")),
        finished(),
    ]
    stream = streamed(renderer(), events)
    assert [event["type"] for event in stream] == [
        "message_start",
        "ping",
        "ping",
        *["content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"],
        *["content_block_start", "content_block_delta", "content_block_stop"],
        *["content_block_start", "content_block_delta", "content_block_stop"],
        "message_delta",
        "message_stop",
    ]
    assert stream[5]["delta"]["type"] == "signature_delta"
    assert stream[0]["message"]["usage"] | {"output_tokens_details": None} == {
        "input_tokens": 30,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 0,
        "output_tokens_details": None,
    }
    assert stream[-2]["usage"] == {
        "input_tokens": 23,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 7,
        "output_tokens": 12,
        "output_tokens_details": {"thinking_tokens": 4},
    }


CALL = ToolCallDelta(0, ToolCall("f", "{}", "call_1"))
CUT = ToolCallDelta(0, ToolCall("f", '{"a": "b", "c', "call_1"))


@pytest.mark.parametrize(
    ("events", "reason", "stop"),
    [
        ([TextDelta("a"), finished()], "end_turn", None),
        ([TextDelta("a"), finished(stop="END")], "stop_sequence", "END"),
        ([TextDelta("a"), finished(FinishReason.LENGTH)], "max_tokens", None),
        ([TextDelta("a"), finished(FinishReason.LENGTH, window_full=True)], "model_context_window_exceeded", None),
        ([CALL, finished()], "tool_use", None),
        ([CALL, TextDelta("after"), finished(stop="END")], "tool_use", None),
        ([CUT, finished(stop="END")], "stop_sequence", "END"),
        ([CUT, finished(FinishReason.LENGTH)], "max_tokens", None),
        ([finished()], "end_turn", None),
    ],
)
def test_why_a_message_ends(events: list[GenerationEvent], reason: str, stop: str | None) -> None:
    message = whole(renderer(), events)
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, stop)


def test_arguments_that_were_cut_have_what_is_complete() -> None:
    text = json.dumps({"a": 'x"y', "b": [1, {"c": "d\\"}, [2, 3]], "e": {"f": None}, "g": 1.5}, ensure_ascii=False)
    for end in range(len(text)):
        part = arguments_of(text[:end])
        known: Any = pydantic_core.from_json(text[:end] or "{}", allow_partial=True)
        assert is_part_of(part, known), (text[:end], part, known)
    assert arguments_of(text) == json.loads(text)
    assert arguments_of("") == {}
    assert arguments_of('{"a":' * 3000) == {}
    assert arguments_of('{"a": 1}}') == {}
    assert arguments_of("[1]") == {}
    assert arguments_of("nothing") == {}


def test_half_a_surrogate_pair_in_arguments_is_replaced() -> None:
    for arguments in (r'{"a": "\ud83d"}', r'{"a": "\ud83d", "b": "cut'):
        message = whole(renderer(), [ToolCallDelta(0, ToolCall("look", arguments, "c")), finished()])
        assert message["content"][0]["input"] == {"a": "\ufffd"}


def is_part_of(part: Any, known: Any) -> bool:
    """Whether a value has nothing that another has not; a client may keep numbers that could go on."""
    if isinstance(part, dict):
        return isinstance(known, dict) and all(
            key in known and is_part_of(value, known[key]) for key, value in part.items()
        )
    if isinstance(part, list):
        return len(part) <= len(known) and all(map(is_part_of, part, known))
    return bool(part == known)


@pytest.mark.parametrize(
    "text", ['"', "\\", "\n", "\r\n", "event: error\n\n", "🙂", "\u2028", "</script>", "\x00", "text"]
)
def test_any_text_survives_the_framing(text: str) -> None:
    message = put_together(streamed(renderer(), [TextDelta(text), finished()]))
    assert message["content"] == [{"type": "text", "text": text}]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ExecutionError("the model failed"), "api_error"),
        (ServerShutdownError("closing", hint="Send it again."), "overloaded_error"),
        (QueueFullError("full"), "overloaded_error"),
    ],
)
def test_a_failure_is_one_event_and_nothing_follows(error: Any, kind: str) -> None:
    it = renderer()
    *_, last = frames(it.opening() + it.event(0, TextDelta("a")) + it.error(error))
    assert (last["type"], last["error"]["type"], last["request_id"]) == ("error", kind, "r1")
    assert last["error"]["message"].startswith(error.message)


@pytest.mark.parametrize(
    ("own", "shown"),
    [
        ("call_0123456789abcdef01234567", "toolu_0123456789abcdef01234567"),
        ("Ab3dEf6h9", "toolu_Ab3dEf6h9"),
        ("toolu_foreign-id_1", "toolu_foreign-id_1"),
    ],
)
def test_ids_of_calls_come_back_as_they_were(own: str, shown: str) -> None:
    assert shown_call_id(own) == shown
    assert own_call_id(shown) == own


@pytest.mark.parametrize("foreign", ["call_abc-1", "functions.f:0", "toolu_01A09q90qw90lq917835lq9", "x", ""])
def test_ids_of_others_stay_as_they_are(foreign: str) -> None:
    assert own_call_id(foreign) == foreign
