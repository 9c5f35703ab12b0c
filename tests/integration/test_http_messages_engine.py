"""The Messages API over the real engine: Anthropic's SDK, and scripted models that say what they are told."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest
from models.scripted_model import write_model
from serving.messages import TEMPLATE, call, events, put_together, tool
from serving.running import RunningServer, read_all
from serving.whole_program import WholeProgram

from mlxk.entrypoints.settings import ServerSettings

pytestmark = pytest.mark.mlx

RESULT, PLAIN, JSON_MARK, LONG = "@@RESULT@@", "@@PLAIN@@", "@@JSON@@", "@@LONG@@"
THOUGHT = "The user wants two files, so I read both."
REPLY = (
    f"<think>\n{THOUGHT}\n</think>\n\nI read them.\n"
    '<tool_call>\n{"name": "Read", "arguments": {"path": "a.txt"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "Bash", "arguments": {"command": "cat b"}}\n</tool_call>'
)
REPLIES = {
    "/no_think": "Without a thought.",
    "</think>": "So that is that.",
    PLAIN: "Just text, and then the end of it.",
    RESULT: "Both files say hello.",
    JSON_MARK: '{"path": "c.txt"}',
    LONG: "word by word " + " and on".join(str(index) for index in range(100, 160)),
}
CALLS = [("Read", {"path": "a.txt"}), ("Bash", {"command": "cat b"})]
TOOLS = [tool("Read", path="string"), tool("Bash", command="string")]
SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
FORMAT = {"type": "json_schema", "schema": SCHEMA}
READ = {"type": "tool", "name": "Read"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Serve the models by their paths."""
    folder = tmp_path_factory.mktemp("messages")
    special = ("<|im_start|>",)
    write_model(folder / "thinker", TEMPLATE, REPLY, REPLIES, special=special, added=("<think>",))
    plain = TEMPLATE.replace("{% if enable_thinking is defined and not enable_thinking %}/no_think{% endif %}", "")
    plain = plain.replace("<think>", "").replace("</think>", "")
    write_model(folder / "plain", plain, "Hello there.", {LONG: REPLIES[LONG]}, special=special, context=512)
    program: Any = WholeProgram(folder, ServerSettings(allow_paths=True))
    program.folder = folder
    with RunningServer(program) as running:
        yield running


def body(served: RunningServer, text: str, model: str = "thinker", **fields: Any) -> dict[str, Any]:
    """Return a request."""
    program: Any = served.parts
    messages = [{"role": "user", "content": text}]
    return {"model": str(program.folder / model), "max_tokens": 400, "temperature": 0, "messages": messages, **fields}


def ask(served: RunningServer, request: dict[str, Any], stream: bool = False) -> dict[str, Any]:
    """Ask; return the message, put together from its events if it was streamed."""
    if not stream:
        status, _, answer = served.post("/v1/messages", request)
        assert status == 200, answer
        return dict(answer)
    return put_together(events(read_all(served.raw("/v1/messages", {**request, "stream": True}))))


def counted(served: RunningServer, request: dict[str, Any]) -> int:
    """Return the number of tokens that a request counts."""
    status, _, answer = served.post("/v1/messages/count_tokens", request)
    assert status == 200, answer
    return int(answer["input_tokens"])


def tokens(answer: dict[str, Any]) -> int:
    """Return the tokens of the prompt."""
    usage = answer["usage"]
    return int(usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"])


@pytest.mark.parametrize("stream", [False, True])
def test_an_agents_loop_with_reasoning_text_and_two_calls(served: RunningServer, stream: bool) -> None:
    request = body(served, "Read a.txt and b.", tools=TOOLS)
    answer = ask(served, request, stream)
    assert [block["type"] for block in answer["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    thinking, said, first, second = answer["content"]
    assert (thinking["thinking"].strip(), said["text"].strip()) == (THOUGHT, "I read them.")
    assert thinking["signature"]
    assert [(each["name"], each["input"]) for each in (first, second)] == CALLS
    assert answer["stop_reason"] == "tool_use"
    assert first["id"] != second["id"]
    results = [
        {"type": "tool_result", "tool_use_id": first["id"], "content": f"{RESULT} hello"},
        {"type": "tool_result", "tool_use_id": second["id"], "content": [{"type": "text", "text": "hello"}]},
    ]
    turns = [*request["messages"], {"role": "assistant", "content": answer["content"]}]
    followed = {**request, "messages": [*turns, {"role": "user", "content": results}]}
    last = ask(served, followed, stream)
    assert [block["text"] for block in last["content"]] == [REPLIES[RESULT]]
    assert last["stop_reason"] == "end_turn"
    assert last["usage"]["cache_read_input_tokens"] > 0
    assert tokens(last) == counted(served, followed)


def test_what_is_streamed_is_what_comes_in_one_piece(served: RunningServer) -> None:
    for text, fields in (
        ("Read a.txt and b.", {"tools": TOOLS}),
        ("Read a.txt and b.", {"tools": TOOLS, "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}),
        ("Read a.txt and b.", {"tools": TOOLS, "thinking": {"type": "adaptive", "display": "omitted"}}),
        ("Read a.txt and b.", {"max_tokens": 0}),
        ("Read a.txt and b.", {"max_tokens": 9}),
        (PLAIN, {"stop_sequences": ["and then"]}),
        (JSON_MARK, {"tools": TOOLS, "tool_choice": READ}),
        (JSON_MARK, {"tools": TOOLS, "tool_choice": READ, "max_tokens": 4}),
        (JSON_MARK, {"output_config": {"format": FORMAT}}),
    ):
        whole, streamed = (ask(served, body(served, text, **fields), stream) for stream in (False, True))
        for answer in (whole, streamed):
            del answer["id"]
            answer["usage"] = {"prompt": tokens(answer), "answer": answer["usage"]["output_tokens"]}
            for index, block in enumerate(answer["content"]):
                if block["type"] == "tool_use":
                    block["id"] = f"toolu_{index}"
        assert whole == streamed


@pytest.mark.parametrize(
    ("text", "fields", "kinds", "reason"),
    [
        (PLAIN, {}, ["text"], ("end_turn", None)),
        (PLAIN, {"stop_sequences": ["never", "and then"]}, ["text"], ("stop_sequence", "and then")),
        (PLAIN, {"max_tokens": 3}, ["text"], ("max_tokens", None)),
        (PLAIN, {"max_tokens": 32000}, ["text"], ("end_turn", None)),
        (PLAIN, {"max_tokens": 0}, [], ("max_tokens", None)),
        ("x", {"tools": TOOLS}, ["thinking", "text", "tool_use", "tool_use"], ("tool_use", None)),
        (JSON_MARK, {"tools": TOOLS[:1], "tool_choice": {"type": "any"}}, ["tool_use"], ("tool_use", None)),
        (JSON_MARK, {"tools": TOOLS, "tool_choice": READ}, ["tool_use"], ("tool_use", None)),
        (PLAIN, {"tools": TOOLS, "tool_choice": {"type": "none"}}, ["text"], ("end_turn", None)),
        (JSON_MARK, {"output_config": {"format": FORMAT}}, ["text"], ("end_turn", None)),
        (JSON_MARK, {"output_format": FORMAT}, ["text"], ("end_turn", None)),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_why_a_message_ends(
    served: RunningServer, text: str, fields: Any, kinds: list[str], reason: Any, stream: bool
) -> None:
    answer = ask(served, body(served, text, **fields), stream)
    assert ([block["type"] for block in answer["content"]], answer["stop_reason"], answer["stop_sequence"]) == (
        kinds,
        *reason,
    )
    if fields.get("max_tokens") == 0:
        assert answer["usage"]["output_tokens"] == 0
    if FORMAT in (fields.get("output_config", {}).get("format"), fields.get("output_format")):
        assert json.loads(answer["content"][0]["text"]) == {"path": "c.txt"}
    if kinds == ["tool_use"]:
        assert (answer["content"][0]["name"], answer["content"][0]["input"]) == (
            "Read",
            {"path": "c.txt"},
        )


def test_only_one_call_is_shown_when_parallel_use_is_disabled(served: RunningServer) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    answer = ask(served, body(served, "x", tools=TOOLS, tool_choice=choice))
    assert [block["type"] for block in answer["content"]] == ["thinking", "text", "tool_use"]


@pytest.mark.parametrize(
    ("thinking", "effort", "reasons"),
    [
        (None, None, True),
        ({"type": "enabled", "budget_tokens": 4000}, None, True),
        ({"type": "adaptive"}, "high", True),
        ({"type": "between_tools"}, None, True),
        ({"type": "disabled"}, "max", False),
    ],
)
def test_whether_a_model_reasons(served: RunningServer, thinking: Any, effort: str | None, reasons: bool) -> None:
    fields = {"thinking": thinking, "output_config": {"effort": effort}}
    plain = ask(served, body(served, "x", tools=TOOLS, **fields))
    assert (plain["content"][0]["type"] == "thinking") is reasons
    assert (plain["usage"]["output_tokens_details"]["thinking_tokens"] > 0) is reasons


def test_the_budget_ends_the_reasoning(served: RunningServer) -> None:
    thinking = {"type": "enabled", "budget_tokens": 3}
    answer = ask(served, body(served, "x", tools=TOOLS, thinking=thinking))
    first, second = answer["content"]
    assert (len(first["thinking"]) < len(THOUGHT), second["text"]) == (True, "So that is that.")


@pytest.mark.parametrize("kind", ["enabled", "adaptive", "disabled", "between_tools"])
def test_a_model_that_cannot_reason_is_never_refused_for_it(served: RunningServer, kind: str) -> None:
    thinking = {"type": kind, **({"budget_tokens": 31999} if kind == "enabled" else {})}
    request = body(served, "Hello?", "plain", thinking=thinking, output_config={"effort": "max"})
    status, headers, answer = served.post("/v1/messages", request)
    assert (status, [block["text"] for block in answer["content"]]) == (200, ["Hello there."])
    named = (headers.get(name, "") for name in ("x-mlxk-adaptations", "x-mlxk-ignored-fields"))
    said = set(", ".join(named).split(", "))
    wanted = {
        "enabled": {"thinking-without-effect", "thinking.budget_tokens"},
        "adaptive": {"reasoning-effort-without-effect"},
        "disabled": {"output_config.effort"},
        "between_tools": {"thinking.type", "reasoning-effort-without-effect"},
    }
    assert wanted[kind] <= said


def test_hidden_reasoning_keeps_its_block(served: RunningServer) -> None:
    thinking = {"type": "adaptive", "display": "omitted"}
    for stream in (False, True):
        first, *_ = ask(served, body(served, "x", thinking=thinking), stream)["content"]
        assert (first["type"], first["thinking"]) == ("thinking", "")
        assert first["signature"]


def test_reasoning_comes_back_to_the_template(served: RunningServer) -> None:
    request = body(served, "Read a.txt.", tools=TOOLS)
    call_block = call("toolu_1", "Read", path="a.txt")
    results = [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "hello"}]
    counts = []
    for thought in ("", "one two three four five"):
        blocks = [{"type": "thinking", "thinking": thought, "signature": ""}, call_block]
        turns = [*request["messages"], {"role": "assistant", "content": blocks}, {"role": "user", "content": results}]
        counts.append(counted(served, {**request, "messages": turns}))
    assert counts[1] - counts[0] == len("<think>\none two three four five\n</think>\n\n") - 15 + 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_refused_in_the_words_that_clients_read(
    served: RunningServer, stream: bool
) -> None:
    request = body(served, "word " * 200, "plain", stream=stream)
    status, headers, answer = served.post("/v1/messages", request)
    assert (status, answer["type"], answer["error"]["type"]) == (400, "error", "invalid_request_error")
    words = answer["error"]["message"].split()
    assert words[:4] == ["prompt", "is", "too", "long:"]
    assert words[5:7] == ["tokens", ">"]
    assert (int(words[4]) > 512, words[7:]) == (True, ["512", "maximum"])
    assert headers["request-id"] == answer["request_id"]


def test_a_full_window_is_said_to_be_full(served: RunningServer) -> None:
    answer = ask(served, body(served, f"{LONG} {'word ' * 90}", "plain", max_tokens=32000))
    assert answer["stop_reason"] == "model_context_window_exceeded"
    assert tokens(answer) + answer["usage"]["output_tokens"] == 512


def test_a_last_message_of_the_assistant_is_continued(served: RunningServer) -> None:
    request = body(served, PLAIN)
    turns = [*request["messages"], {"role": "assistant", "content": [{"type": "text", "text": "Well: "}]}]
    status, headers, answer = served.post("/v1/messages", {**request, "messages": turns})
    assert (status, answer["content"][0]["text"]) == (200, REPLIES[PLAIN])
    assert "answer-continued" in headers["x-mlxk-adaptations"]


def test_late_system_messages_extend_the_prompt_and_hide_no_reasoning(served: RunningServer) -> None:
    """A client adds one after every turn; each request then has to begin as the one before it."""
    system = [{"type": "text", "text": "You are an agent."}]
    late = {"role": "system", "content": "Today is Monday."}
    thought = {"type": "thinking", "thinking": THOUGHT, "signature": ""}
    turns: list[Any] = [{"role": "user", "content": "Read a.txt and b."}, late]
    request = body(served, "", tools=TOOLS, system=system)
    first = ask(served, {**request, "messages": turns})
    blocks = [thought, call("toolu_1", "Read", path="a.txt")]
    results = [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "hello"}]
    turns += [{"role": "assistant", "content": blocks}, {"role": "user", "content": results}, late]
    status, headers, second = served.post("/v1/messages", {**request, "messages": turns})
    assert status == 200, second
    assert headers["x-mlxk-adaptations"] == "late-system-as-user"
    assert second["usage"]["cache_read_input_tokens"] >= tokens(first) - 1
    turns_without = [turns[0], late, {"role": "assistant", "content": blocks[1:]}, *turns[3:]]
    without = {**request, "messages": turns_without}
    assert counted(served, {**request, "messages": turns}) > counted(served, without)


def test_two_conversations_share_the_prompt_before_their_first_messages(served: RunningServer) -> None:
    """The billing line differs with the first message and comes first; marks of the cache move with every turn."""
    instructions = "You are an agent that reads files. " * 8
    answers = []
    for index, question in enumerate(("Nothing yet.", "Something else.")):
        mark = {"cache_control": {"type": "ephemeral"}}
        system = [
            {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1.{index}; cc_entrypoint=cli;"},
            {"type": "text", "text": instructions, **(mark if index else {})},
        ]
        content = [{"type": "text", "text": question, **mark}]
        messages = [{"role": "user", "content": content}]
        answers.append(ask(served, body(served, "", system=system, tools=TOOLS, messages=messages)))
    assert answers[1]["usage"]["input_tokens"] < 60 < len(instructions) < tokens(answers[1])


def test_broken_arguments_of_earlier_calls_are_given_as_they_are(served: RunningServer) -> None:
    for given in ('{"path": "a.t', "[1, 2]", "5", [1], None, {}):
        block = {"type": "tool_use", "id": "toolu_x", "name": "Read", "input": given}
        result = {"type": "tool_result", "tool_use_id": "toolu_x", "content": f"{RESULT} it failed", "is_error": True}
        turns = [
            {"role": "user", "content": "Read a.txt."},
            {"role": "assistant", "content": [block]},
            {"role": "user", "content": [result]},
        ]
        answer = ask(served, body(served, "", tools=TOOLS, messages=turns))
        assert answer["content"][0]["text"] == REPLIES[RESULT]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "nothing"}}}},
            "output_config.format.schema",
        ),
        (
            {
                "tools": [
                    {"type": "bash_20250124", "name": "bash"},
                    {"name": "x", "input_schema": {"type": "nothing"}},
                ],
                "tool_choice": {"type": "any"},
            },
            "tools[1].input_schema",
        ),
        (
            {"tools": [{"name": "x", "input_schema": {"$ref": "#/nowhere"}}], "tool_choice": READ | {"name": "x"}},
            "tools[0].input_schema",
        ),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused_by_its_place(
    served: RunningServer, fields: dict[str, Any], named: str
) -> None:
    for stream in (False, True):
        status, _, answer = served.post("/v1/messages", body(served, PLAIN, stream=stream, **fields))
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
        assert answer["error"]["message"].startswith(named)


def test_the_sdk_streams_parses_and_counts(served: RunningServer) -> None:
    import pydantic

    class Place(pydantic.BaseModel):
        path: str

    request: Any = body(served, "Read a.txt and b.", tools=TOOLS)
    del request["temperature"]
    extra = {"extra_body": {"temperature": 0}}
    with anthropic.Anthropic(base_url=served.url, api_key="any", max_retries=0) as sdk:
        with sdk.messages.stream(**request, **extra) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_message()
        assert {"message_start", "thinking", "text", "input_json", "content_block_stop", "message_stop"} <= kinds
        assert [(block.name, block.input) for block in final.content if block.type == "tool_use"] == CALLS
        counted = sdk.messages.count_tokens(model=request["model"], messages=request["messages"], tools=TOOLS)
        usage = final.usage
        assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
        asked: Any = {"messages": [{"role": "user", "content": JSON_MARK}], "tools": []}
        parsed = sdk.messages.parse(**{**request, **asked}, output_format=Place, **extra)
        assert parsed.parsed_output == Place(path="c.txt")


def test_no_weights_are_loaded_to_count(tmp_path: Path) -> None:
    write_model(tmp_path / "plain", TEMPLATE, "Hello there.", special=("<|im_start|>",))
    program: Any = WholeProgram(tmp_path, ServerSettings(allow_paths=True))
    with RunningServer(program) as running:
        request = {"model": str(tmp_path / "plain"), "messages": [{"role": "user", "content": "Hello?"}]}
        assert running.post("/v1/messages/count_tokens?beta=true", request)[0] == 200
        assert program.generator.state(1).models == ()


def test_a_client_of_any_version_is_served(served: RunningServer) -> None:
    request = body(served, PLAIN)
    for headers in ({}, {"anthropic-version": "2026-10-21"}, {"anthropic-version": "x", "anthropic-beta": "a-1,b-2"}):
        answer = httpx2.post(f"{served.url}/v1/messages?beta=true", json=request, headers=headers, timeout=30)
        assert answer.status_code == 200
        assert answer.headers["request-id"] == answer.headers["x-request-id"]
