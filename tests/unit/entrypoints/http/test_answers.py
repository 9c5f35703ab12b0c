"""Answers: what is streamed and what comes in one piece say the same."""

import datetime
import json
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import pytest

from mlxk.domain.errors import ExecutionError
from mlxk.domain.generation.conversation import ToolCall
from mlxk.domain.generation.request import (
    Finished,
    FinishReason,
    GenerationEvent,
    ReasoningDelta,
    TextDelta,
    Timings,
    TokenAlternative,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from mlxk.entrypoints.http.generation.renderer import RendererFactory, ResponseContext, StreamWriter, WholeWriter
from mlxk.entrypoints.http.openai.completions import CompletionRenderer
from mlxk.entrypoints.http.openai.renderer import ChatRenderer, MessageOptions

LETTERS = 'abc \n"\\🙂é世'


def answer(seed: int) -> list[GenerationEvent]:
    """Return the events of an answer drawn from a seed: text, tokens, thoughts, then calls, then the end."""
    random = Random(seed)

    def text() -> str:
        return "".join(random.choices(LETTERS, k=random.randint(1, 6)))

    def token() -> TokenLogprob:
        return TokenLogprob(TokenAlternative(text(), text().encode(), -random.random()))

    kinds: list[Callable[[], GenerationEvent]] = [
        lambda: TextDelta(text()),
        lambda: TextDelta(text(), (token(), token())),
        lambda: ReasoningDelta(text()),
    ]
    events = [random.choice(kinds)() for _ in range(random.randint(0, 12))]
    for index in range(random.randint(0, 2)):
        events.append(ToolCallDelta(index, ToolCall(text(), "", f"call_{index}")))
        events += [ToolCallDelta(index, ToolCall("", text(), "")) for _ in range(random.randint(0, 3))]
    usage = Usage(random.randint(0, 99), random.randint(0, 99), random.randint(0, 9))
    reason = random.choice([FinishReason.STOP, FinishReason.LENGTH])
    return [*events, Finished(reason, usage, Timings(0, 0, 0))]


def drawn(seed: int) -> list[list[GenerationEvent]]:
    """Return the events of one to three choices."""
    return [answer(seed * 3 + index) for index in range(1 + seed % 3)]


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

    @property
    def events(self) -> list[Any]:
        """What was sent, as JSON."""
        frames = [frame for frame in self.data.decode().split("\n\n") if frame.startswith("data: ")]
        return [frame[6:] if frame == "data: [DONE]" else json.loads(frame[6:]) for frame in frames]


def context(choices: int) -> ResponseContext:
    """Return facts about a response."""
    return ResponseContext("r1", datetime.datetime.fromtimestamp(1, datetime.UTC), "m", "fp_0", choices, choices)


def streamed(renderer: RendererFactory, choices: list[list[GenerationEvent]], include_usage: bool = True) -> Recorder:
    """Stream some choices, one after the other."""
    body = Recorder()
    writer = StreamWriter(partial(renderer, include_usage=include_usage)(context(len(choices))), body)
    writer.open()
    for index, events in enumerate(choices):
        for event in events:
            writer.events(index, [event])
    writer.close([events[-1] for events in choices if isinstance(events[-1], Finished)])
    return body


def collected(renderer: RendererFactory, choices: list[list[GenerationEvent]]) -> Any:
    """Render the same choices as a whole response."""
    writer = WholeWriter(renderer(context(len(choices))), len(choices))
    writer.open()
    for index, events in enumerate(choices):
        writer.events(index, events)
    writer.close([events[-1] for events in choices if isinstance(events[-1], Finished)])
    return json.loads(writer.wait())


def chat(**options: Any) -> RendererFactory:
    """Return the renderer of chats with some options."""
    return partial(ChatRenderer, options=MessageOptions(**options))


def together(chunks: list[Any], index: int) -> dict[str, Any]:
    """Put the chunks of a choice together as a client does."""
    whole: dict[str, Any] = {"content": "", "reasoning_content": "", "calls": {}, "finish_reason": None, "tokens": []}
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] != index:
                continue
            delta = choice["delta"]
            whole["content"] += delta.get("content", "")
            whole["reasoning_content"] += delta.get("reasoning_content", "")
            whole["tokens"] += (choice["logprobs"] or {"content": []})["content"]
            whole["finish_reason"] = choice["finish_reason"] or whole["finish_reason"]
            for call in delta.get("tool_calls", []):
                known = whole["calls"].setdefault(call["index"], {"id": "", "name": "", "arguments": ""})
                known["id"] += call.get("id", "")
                known["name"] += call["function"].get("name", "")
                known["arguments"] += call["function"].get("arguments", "")
    return whole


def test_a_streamed_answer_and_one_in_one_piece_say_the_same() -> None:
    for seed in range(2000):
        same_for_chat(drawn(seed))


def same_for_chat(choices: list[list[GenerationEvent]]) -> None:
    """Check that a stream's chunks, put together as a client does it, are the answer in one piece."""
    *chunks, done = streamed(ChatRenderer, choices).events
    whole = collected(ChatRenderer, choices)
    assert done == "[DONE]"
    assert chunks[-1]["usage"] == whole["usage"]
    for index, choice in enumerate(whole["choices"]):
        put_together, message = together(chunks, index), choice["message"]
        assert (message["content"] or "") == put_together["content"]
        assert message.get("reasoning_content", "") == put_together["reasoning_content"]
        assert choice["finish_reason"] == put_together["finish_reason"]
        assert (choice["logprobs"] or {"content": []})["content"] == put_together["tokens"]
        calls = [
            {"id": call["id"], "name": call["function"]["name"], "arguments": call["function"]["arguments"]}
            for call in message.get("tool_calls", [])
        ]
        assert calls == [put_together["calls"][key] for key in sorted(put_together["calls"])]


def test_the_same_holds_for_completions() -> None:
    for seed in range(500):
        same_for_completions(drawn(seed), echo=seed % 2 == 0)


def same_for_completions(choices: list[list[GenerationEvent]], *, echo: bool) -> None:
    """The same check for completions."""
    renderer = partial(CompletionRenderer, echoes=["the prompt" if echo else ""] * len(choices))
    *chunks, done = streamed(renderer, choices).events
    whole = collected(renderer, choices)
    assert done == "[DONE]"
    for index, choice in enumerate(whole["choices"]):
        mine = [each for chunk in chunks for each in chunk["choices"] if each["index"] == index]
        assert choice["text"] == "".join(each["text"] for each in mine)
        assert choice["finish_reason"] == mine[-1]["finish_reason"]
        if choice["logprobs"]:
            parts = [each["logprobs"] for each in mine if each["logprobs"]]
            assert choice["logprobs"] == {key: [v for part in parts for v in part[key]] for key in choice["logprobs"]}


def test_nothing_cancels_an_answer_in_one_piece_before_its_end() -> None:
    writer = WholeWriter(ChatRenderer(context(1)), 1)
    assert (writer.open(), writer.keep_alive(), writer.progress(1, 2), writer.events(0, [finished()])) == (True,) * 4
    writer.close([finished()])
    assert json.loads(writer.wait())["choices"][0]["finish_reason"] == "stop"


def finished(reason: FinishReason = FinishReason.STOP) -> Finished:
    """Return an end."""
    return Finished(reason, Usage(3, 2, 1), Timings(0, 0, 0))


def test_the_role_comes_first_and_done_comes_last() -> None:
    body = streamed(ChatRenderer, [[TextDelta("a"), TextDelta("b"), finished()]], include_usage=False)
    deltas = [event["choices"][0]["delta"] for event in body.events[:-1]]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "a"}, {"content": "b"}, {}]
    assert body.events[-1] == "[DONE]"
    assert body.finished == 1


def test_the_usage_is_sent_only_when_asked_for() -> None:
    choices: list[list[GenerationEvent]] = [[TextDelta("a"), finished()]]
    silent = streamed(ChatRenderer, choices, include_usage=False).events[:-1]
    assert all("usage" not in event for event in silent)
    assert all(event["choices"] for event in silent)
    *chunks, trailer = streamed(ChatRenderer, choices).events[:-1]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert trailer["choices"] == []
    assert trailer["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}


def test_a_failure_is_one_event_and_nothing_follows() -> None:
    body = Recorder()
    writer = StreamWriter(ChatRenderer(context(1)), body)
    writer.open()
    writer.fail(ExecutionError("the model failed"))
    assert body.events[-1]["error"]["code"] == "execution_error"
    assert body.events[-1]["request_id"] == "r1"
    assert sum("error" in event for event in body.events) == 1
    assert "[DONE]" not in body.events
    assert body.finished == 1


@pytest.mark.parametrize("text", ['"', "\\", "\n", "\r\n", "data: [DONE]\n\n", "🙂", "\u2028", "</script>", "\x00"])
def test_any_text_survives_the_framing(text: str) -> None:
    body = streamed(ChatRenderer, [[TextDelta(text), finished()]])
    assert together(body.events[:-1], 0)["content"] == text


def test_an_answer_that_only_calls_has_no_content() -> None:
    call = ToolCallDelta(0, ToolCall("add", "{}", "c1"))
    choice = collected(ChatRenderer, [[call, finished()]])["choices"][0]
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "tool_calls"


def test_a_name_of_a_call_is_sent_once_and_its_arguments_grow() -> None:
    events: list[GenerationEvent] = [
        ToolCallDelta(0, ToolCall("add", "", "c1")),
        ToolCallDelta(0, ToolCall("", '{"a"', "")),
        ToolCallDelta(0, ToolCall("", ": 1}", "")),
        finished(),
    ]
    deltas = [event["choices"][0]["delta"] for event in streamed(ChatRenderer, [events]).events[:-2]]
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert calls[0] == {"index": 0, "id": "c1", "type": "function", "function": {"name": "add", "arguments": ""}}
    assert [call["function"]["arguments"] for call in calls] == ["", '{"a"', ": 1}"]
    assert all("id" not in call for call in calls[1:])


def test_only_the_first_call_is_shown_when_one_was_allowed() -> None:
    calls: list[GenerationEvent] = [
        ToolCallDelta(0, ToolCall("a", "{}", "c1")),
        ToolCallDelta(1, ToolCall("b", "{}", "c2")),
        finished(),
    ]
    renderer = chat(one_call=True)
    assert [call["id"] for call in collected(renderer, [calls])["choices"][0]["message"]["tool_calls"]] == ["c1"]
    assert '"c2"' not in streamed(renderer, [calls]).data.decode()


def test_a_stop_string_that_cuts_a_call_nobody_sees_cuts_nothing() -> None:
    whole, part = ToolCallDelta(0, ToolCall("a", "{}", "c1")), ToolCallDelta(1, ToolCall("b", '{"x', "c2"))
    for one_call, reason in ((True, "tool_calls"), (False, "length")):
        renderer = chat(one_call=one_call, stops=True)
        assert collected(renderer, [[whole, part, finished()]])["choices"][0]["finish_reason"] == reason


def test_offsets_of_tokens_count_reasoning_and_calls_as_the_text_that_they_are() -> None:
    token = TokenLogprob(TokenAlternative("x", b"x", -0.5))
    call = ToolCallDelta(0, ToolCall("f", "{}", "c1"))
    events: list[GenerationEvent] = [ReasoningDelta("ab"), call, TextDelta("x", (token,)), finished()]
    (choice,) = collected(partial(CompletionRenderer, echoes=[""]), [events])["choices"]
    assert (choice["text"], choice["logprobs"]["text_offset"]) == ("ab{}x", [4])
