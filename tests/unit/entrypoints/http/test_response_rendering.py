"""The renderer of the Responses API: what is streamed and what comes in one piece say the same, item by item."""

import datetime
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
from doubles.clock import InMemoryClock
from serving import contract
from serving.response_events import put_together, read_events

from mlxk.domain.errors import ContextLengthError, ExecutionError, MlxkError, QueueFullError
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
from mlxk.entrypoints.http.generation.renderer import ResponseContext
from mlxk.entrypoints.http.openai.renderer import MessageOptions
from mlxk.entrypoints.http.responses.renderer import RequestContext, ResponsesRenderer, request_fields
from mlxk.entrypoints.http.responses.request import ResponseRequest
from mlxk.entrypoints.http.responses.tools import (
    BuiltInTool,
    CustomTool,
    FunctionTool,
    NamespaceTool,
    SearchTool,
    Tool,
    Toolbox,
)

LETTERS = 'abc \n"\\🙂é世'
TOOLS: list[Tool] = [
    FunctionTool(name="add"),
    CustomTool(name="apply_patch"),
    NamespaceTool(name="agents", tools=[FunctionTool(name="close"), CustomTool(name="note")]),
    SearchTool(execution="client"),
    BuiltInTool(type="shell"),
    BuiltInTool(type="local_shell"),
]
TOOLBOX = Toolbox([(f"tools[{index}]", tool) for index, tool in enumerate(TOOLS)])
NAMES = ["add", "apply_patch", "agents__close", "agents__note", "tool_search", "shell", "local_shell", "unknown"]
PLAIN = MessageOptions()
MOMENT = datetime.datetime.fromtimestamp(7, datetime.UTC)


def renderer(options: MessageOptions = PLAIN, keep: Callable[[Any], bool] = lambda _: True) -> ResponsesRenderer:
    """Return a renderer; all of them render the same response."""
    context = ResponseContext("r1", MOMENT, "m", "fp_0", 1, 1)
    fields = request_fields(ResponseRequest(model="m", input="hi"), {})
    return ResponsesRenderer(
        context,
        options,
        RequestContext(
            fields=fields, toolbox=TOOLBOX, keep=keep, clock=InMemoryClock(), response_id=f"resp_{'0' * 32}"
        ),
    )


def finished(reason: FinishReason = FinishReason.STOP) -> Finished:
    """Return an end."""
    return Finished(reason, Usage(9, 5, 3, 2), Timings(0, 0, 0))


def drawn(seed: int) -> list[GenerationEvent]:
    """Return the events of an answer: thoughts, text, tokens and calls of all kinds, in any order, and the end."""
    random = Random(seed)

    def text() -> str:
        return "".join(random.choices(LETTERS, k=random.randint(1, 6)))

    def token() -> TokenLogprob:
        return TokenLogprob(TokenAlternative(text(), text().encode(), -random.random()))

    events: list[GenerationEvent] = []
    calls = 0
    for _ in range(random.randint(0, 9)):
        kind = random.randint(0, 3)
        if kind < 2:
            events.append(TextDelta(text(), (token(),) if kind else ()))
        elif kind == 2:
            events.append(ReasoningDelta(text()))
        else:
            events.append(ToolCallDelta(calls, ToolCall(random.choice(NAMES), "", f"call_{calls}")))
            written = json.dumps({random.choice(["input", "command", "city"]): text()})
            cut = random.choice([len(written), random.randint(0, len(written))])
            events += [ToolCallDelta(calls, ToolCall("", each)) for each in written[:cut]]
            calls += 1
    return [*events, finished(random.choice([FinishReason.STOP, FinishReason.LENGTH]))]


def streamed(events: Sequence[GenerationEvent], options: MessageOptions = PLAIN) -> list[Any]:
    """Return the events of a stream, with a keep-alive in the middle."""
    rendering = renderer(options)
    data = rendering.opening()
    for index, event in enumerate(events):
        data += rendering.event(0, event)
        if index == len(events) // 2:
            data += rendering.keep_alive()
    last = events[-1]
    assert isinstance(last, Finished)
    return read_events((data + rendering.closing([last])).decode())


def whole(events: Sequence[GenerationEvent], options: MessageOptions = PLAIN) -> Any:
    """Return the same as one document, held against the contract."""
    last = events[-1]
    assert isinstance(last, Finished)
    document = json.loads(renderer(options).whole([events], [last]))
    assert contract.faults("/components/schemas/Response", document) == []
    return document


@pytest.mark.parametrize("one_call", [False, True])
def test_a_streamed_response_and_one_in_one_piece_say_the_same(one_call: bool) -> None:
    options = MessageOptions(one_call=one_call)
    for seed in range(120):
        events = streamed(drawn(seed), options)
        document = whole(drawn(seed), options)
        assert events[-1]["response"] == document
        assert put_together(events) == document["output"]
        assert events[-1]["type"] == f"response.{document['status']}"


def call(name: str, arguments: str, index: int = 0) -> list[GenerationEvent]:
    """Return the events of a call."""
    begun = ToolCallDelta(index, ToolCall(name, "", f"c{index}"))
    return [begun, *(ToolCallDelta(index, ToolCall("", each)) for each in (arguments[:5], arguments[5:]) if each)]


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("add", '{"a": 1}', {"type": "function_call", "name": "add", "arguments": '{"a": 1}'}),
        ("add", '{"a": ', {"type": "function_call", "name": "add", "arguments": '{"a": '}),
        ("agents__close", "{}", {"type": "function_call", "name": "close", "namespace": "agents", "arguments": "{}"}),
        ("agents.close", "{}", {"type": "function_call", "name": "close", "namespace": "agents", "arguments": "{}"}),
        ("close", "{}", {"type": "function_call", "name": "close", "namespace": "agents", "arguments": "{}"}),
        ("unknown", "{}", {"type": "function_call", "name": "unknown", "arguments": "{}"}),
        ("apply_patch", '{"input": "*** Begin\\n"}', {"type": "custom_tool_call", "input": "*** Begin\n"}),
        ("apply_patch", '{"patch": "+x"}', {"type": "custom_tool_call", "input": "+x"}),
        ("apply_patch", '{"input": "cut \\u00', {"type": "custom_tool_call", "input": "cut "}),
        ("apply_patch", '{"input": "half \\ud83d a pair"}', {"input": "half \ufffd a pair"}),
        ("shell", '{"commands": ["\\ud83d"], "\\udc00": [1]}', {"type": "shell_call"}),
        ("apply_patch", '"a text"', {"type": "custom_tool_call", "input": "a text"}),
        ("apply_patch", "*** Begin", {"type": "custom_tool_call", "input": "*** Begin"}),
        ("apply_patch", "{}", {"type": "custom_tool_call", "input": ""}),
        ("apply_patch", '{"a": 1, "b": 2}', {"type": "custom_tool_call", "input": '{"a": 1, "b": 2}'}),
        ("agents__note", '{"input": "x"}', {"type": "custom_tool_call", "name": "note", "namespace": "agents"}),
        (
            "tool_search",
            '{"query": "mail"}',
            {"type": "tool_search_call", "execution": "client", "arguments": {"query": "mail"}},
        ),
        ("tool_search", "mail", {"type": "tool_search_call", "arguments": {"query": "mail"}}),
        (
            "local_shell",
            '{"command": ["ls"]}',
            {"type": "local_shell_call", "action": {"type": "exec", "command": ["ls"], "env": {}}},
        ),
        ("local_shell", '{"command": "ls -l"}', {"type": "local_shell_call"}),
        (
            "shell",
            '{"commands": ["ls", "pwd"]}',
            {
                "type": "shell_call",
                "action": {"commands": ["ls", "pwd"], "timeout_ms": None, "max_output_length": None},
            },
        ),
    ],
)
def test_a_call_becomes_the_item_that_the_client_can_run(name: str, arguments: str, expected: dict[str, Any]) -> None:
    events: list[GenerationEvent] = [*call(name, arguments), finished()]
    [item] = whole(events)["output"]
    assert {key: item[key] for key in expected} == expected
    assert item["call_id"] == "c0"
    assert put_together(streamed(events)) == [item]


def test_the_events_of_a_message_come_in_the_order_that_clients_need() -> None:
    events = streamed([ReasoningDelta("hm"), TextDelta("a"), TextDelta("b"), finished()])
    kinds = [event["type"].removeprefix("response.") for event in events if event["type"] != "response.in_progress"]
    assert kinds == [
        "created",
        "output_item.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]


def test_a_keep_alive_is_an_event_and_never_a_comment() -> None:
    rendering = renderer()
    opening = rendering.opening()
    frame = rendering.keep_alive()
    assert frame.startswith(b"event: response.in_progress\ndata: ")
    assert read_events((opening + frame + rendering.closing([finished()])).decode())[2]["sequence_number"] == 2


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ExecutionError("it broke"), "server_error", "it broke"),
        (QueueFullError("later"), "rate_limit_exceeded", "later"),
        (
            ContextLengthError("too long", detail={"prompt_tokens": 90, "context_length": 64}),
            "context_length_exceeded",
            "This model's maximum context length is 64 tokens. However, your input resulted in 90 tokens."
            " Please reduce the length of the input.",
        ),
    ],
)
def test_a_failure_is_a_response_that_failed_with_what_there_was(error: MlxkError, code: str, message: str) -> None:
    kept: list[Any] = []
    rendering = renderer(keep=lambda document: bool(kept.append(document)))
    data = rendering.opening() + rendering.event(0, TextDelta("half"))
    event = read_events((data + rendering.error(error)).decode())[-1]
    assert event["type"] == "response.failed"
    assert event["response"]["status"] == "failed"
    assert event["response"]["error"] == {"code": code, "message": message}
    assert event["response"]["usage"] is None
    [item] = event["response"]["output"]
    assert (item["status"], item["content"][0]["text"]) == ("incomplete", "half")
    assert kept == []


def test_the_token_limit_leaves_the_last_item_and_the_response_incomplete() -> None:
    events: list[GenerationEvent] = [TextDelta("a"), *call("add", '{"a": '), finished(FinishReason.LENGTH)]
    document = whole(events)
    assert [item["status"] for item in document["output"]] == ["completed", "incomplete"]
    assert (document["status"], document["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert document["completed_at"] is None


@pytest.mark.parametrize(
    ("events", "types"),
    [
        ([finished()], ["message"]),
        ([ReasoningDelta("hm"), finished()], ["reasoning", "message"]),
        ([ReasoningDelta("hm"), finished(FinishReason.LENGTH)], ["reasoning"]),
        ([finished(FinishReason.LENGTH)], ["message"]),
        ([*call("add", "{}"), finished()], ["function_call"]),
    ],
)
def test_an_answer_of_nothing_is_an_empty_message(events: list[GenerationEvent], types: list[str]) -> None:
    assert [item["type"] for item in whole(events)["output"]] == types


def test_a_stop_string_that_cuts_arguments_leaves_the_response_incomplete() -> None:
    events: list[GenerationEvent] = [*call("add", '{"a": '), finished()]
    assert whole(events, MessageOptions(stops=True))["status"] == "incomplete"
    assert whole(events)["status"] == "completed"


def test_the_usage_is_true_to_the_token() -> None:
    assert whole([TextDelta("a"), finished()])["usage"] == {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 14,
    }


@pytest.mark.parametrize("kept", [True, False])
def test_a_response_says_whether_it_is_kept(kept: bool) -> None:
    end = finished()
    document = json.loads(renderer(keep=lambda _: kept).whole([[TextDelta("a"), end]], [end]))
    assert document["store"] is kept
