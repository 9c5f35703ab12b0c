"""Tools, schemas and stop strings over HTTP with the real engine: held to, or refused by the field at fault."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving.running import RunningServer, events_of, read_all
from serving.whole_program import PATH, WholeProgram

pytestmark = pytest.mark.mlx
Json = dict[str, Any]

ASKED: Json = {"role": "user", "content": "What is the weather in Paris?"}
CITY: Json = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
NOWHERE: Json = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
BEYOND: Json = {"type": "integer", "minimum": 10**20, "maximum": 10**20 + 5}


def tool(name: str = "get_weather", parameters: Json = CITY) -> Json:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def form(schema: Json) -> Json:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}


def called(arguments: str) -> list[Json]:
    """Return a conversation in which the model has made a call."""
    call = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    return [ASKED, answer, {"role": "tool", "tool_call_id": "c", "content": "20 C"}]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    program: Any = WholeProgram(tmp_path_factory.mktemp("home"))
    with RunningServer(program) as running:
        yield running


def ask(served: RunningServer, **fields: Any) -> tuple[int, Any]:
    asked = {"model": "demo", "messages": [ASKED], "temperature": 0, "max_tokens": 60, **fields}
    status, _, answer = served.post(PATH, asked)
    return status, answer


def refused(served: RunningServer, **fields: Any) -> tuple[int, str, str]:
    """Return status, field and message of a refusal, which is the same for a stream."""
    status, answer = ask(served, **fields)
    assert status >= 400, answer
    error = answer["error"]
    assert [problem["param"] for problem in error["detail"]["problems"]] == [error["param"]]
    assert ask(served, stream=True, **fields)[0] == status
    return status, error["param"], error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"enable_thinking": True}, "enable_thinking"),
        ({"enable_thinking": True, "tools": [tool()]}, "enable_thinking"),
    ],
)
def test_what_a_model_cannot_be_told_is_refused(served: RunningServer, fields: Json, param: str) -> None:
    listed = served.get("/v1/models/demo-vision")[2]
    assert (listed["supports_tools"], listed["supports_reasoning"]) == (False, False)
    assert refused(served, model="demo-vision", **fields)[:2] == (422, param)
    assert ask(served, **fields)[0] == 200


@pytest.mark.parametrize("model", ["demo", "demo-vision"])
@pytest.mark.parametrize("effort", ["none", "minimal", "low", "medium", "high", "xhigh"])
def test_every_effort_is_taken_by_models_that_know_no_levels(served: RunningServer, model: str, effort: str) -> None:
    assert ask(served, model=model, reasoning_effort=effort)[0] == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [tool()], "tool_choice": "none"},
        {"tools": []},
        {"tools": [tool()], "tool_choice": "required"},
        {"enable_thinking": False},
        {"reasoning_effort": "none"},
        {"reasoning_effort": "medium"},
    ],
)
def test_what_needs_no_telling_is_answered_by_any_model(served: RunningServer, fields: Json) -> None:
    assert ask(served, model="demo-vision", **fields)[0] == 200


@pytest.mark.parametrize(
    "arguments",
    [
        "[" * 100_000,
        '{"a":' * 3000 + "1" + "}" * 3000,
        r'{"a": "\ud800"}',
        r'{"\uDFFF": 1}',
        "[1]",
        "null",
    ],
)
def test_arguments_that_no_template_can_show_are_refused(served: RunningServer, arguments: str) -> None:
    status, param, _ = refused(served, messages=called(arguments))
    assert (status, param) == (400, "messages[1].tool_calls[0].function.arguments")


def test_a_call_that_was_cut_can_be_sent_back(served: RunningServer) -> None:
    cut = 0
    for most in (2, 3, 14, 16, 18):
        _, answer = ask(served, tools=[tool()], tool_choice="required", max_tokens=most)
        (found,) = answer["choices"]
        calls = found["message"].get("tool_calls")
        if not calls or found["finish_reason"] != "length":
            continue
        cut += 1
        result = {"role": "tool", "tool_call_id": calls[0]["id"], "content": "20 C"}
        status, answer = ask(served, messages=[ASKED, found["message"], result], tools=[tool()], max_tokens=1)
        assert status == 200, answer
    assert cut


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": form({"$ref": "#"})}, "response_format.json_schema.schema"),
        ({"response_format": form(NOWHERE)}, "response_format.json_schema.schema"),
        ({"response_format": form({"anyOf": [{"$ref": "#"}]})}, "response_format.json_schema.schema"),
        (
            {"response_format": form({"properties": {"x": {"$ref": "#/$defs/a"}}, "$defs": NOWHERE["$defs"]})},
            "response_format.json_schema.schema",
        ),
        ({"response_format": form({"type": "nonsense"})}, "response_format.json_schema.schema"),
        ({"response_format": form(BEYOND)}, "response_format.json_schema.schema"),
        ({"response_format": form({"const": -(2**63)})}, "response_format.json_schema.schema"),
        ({"tools": [tool(parameters=BEYOND)], "tool_choice": "required"}, "tools[0].function.parameters"),
        (
            {
                "tools": [tool(), tool("bad", NOWHERE)],
                "tool_choice": {"type": "function", "function": {"name": "bad"}},
            },
            "tools[1].function.parameters",
        ),
        (
            {"tools": [tool(), tool("bad", {"type": "nonsense"})], "tool_choice": "required"},
            "tools[1].function.parameters",
        ),
        ({"tools": [tool(), tool("bad", BEYOND)], "tool_choice": "required"}, "tools[1].function.parameters"),
        (
            {
                "tools": [tool(), tool("bad", BEYOND)],
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "required", "tools": [{"function": {"name": "bad"}}]},
                },
            },
            "tools[1].function.parameters",
        ),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused_where_it_stands(
    served: RunningServer, fields: Json, param: str
) -> None:
    status, found, message = refused(served, **fields)
    assert (status, found) == (400, param)
    assert message.startswith(f"{param}: the JSON schema cannot be used: ")
    assert "<state>" not in message


@pytest.mark.parametrize(
    ("fields", "stop", "reason"),
    [
        ({"tools": [tool()], "tool_choice": "required"}, "city", "length"),
        ({"tools": [tool(), tool("other")], "tool_choice": "required"}, "city", "length"),
        ({"tools": [tool(), tool("other")], "tool_choice": "required"}, '"name"', "length"),
        ({"tools": [tool()]}, "city", "stop"),
        ({"response_format": {"type": "json_object"}}, ":", "length"),
        ({"response_format": form(CITY)}, "{", "length"),
        ({"tools": [tool()], "tool_choice": "required"}, "nowhere", "tool_calls"),
        ({"tools": [tool()]}, "nowhere", "tool_calls"),
        ({"response_format": form(CITY)}, "nowhere", "stop"),
        ({}, "e", "stop"),
    ],
)
def test_what_has_to_be_json_and_was_cut_by_a_stop_string_says_so(
    served: RunningServer, fields: Json, stop: str, reason: str
) -> None:
    status, answer = ask(served, stop=[stop], **fields)
    (found,) = answer["choices"]
    assert (status, found["finish_reason"]) == (200, reason)
    if reason != "length":
        for call in found["message"].get("tool_calls") or []:
            json.loads(call["function"]["arguments"])
    body = {"model": "demo", "messages": [ASKED], "temperature": 0, "max_tokens": 60, "stop": [stop], **fields}
    events = events_of(read_all(served.raw(PATH, {**body, "stream": True}, extra="Connection: close\r\n")))
    assert [each["choices"][0]["finish_reason"] for each in events[:-1]][-1] == reason


OPEN = {key: value for key, value in CITY.items() if key != "additionalProperties"}
SAME_EVERYWHERE: dict[str, Json] = {
    "closed": CITY,
    "open": OPEN,
    "explicitly open": {**OPEN, "additionalProperties": True},
    "nothing required": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 9}}},
    "without type": {"properties": {"city": {"const": "Paris"}}, "required": ["city"]},
    "nested": {"type": "object", "properties": {"at": OPEN, "days": {"type": "integer"}}, "required": ["at", "days"]},
    "list": {"type": "array", "items": OPEN, "minItems": 1, "maxItems": 2},
    "alternatives": {"anyOf": [OPEN, {"type": "null"}]},
    "reference": {"type": "object", "properties": {"at": {"$ref": "#/$defs/city"}}, "$defs": {"city": OPEN}},
    "parts of one object": {"allOf": [OPEN, {"type": "object", "properties": {"days": {"type": "integer"}}}]},
}


@pytest.mark.parametrize("schema", SAME_EVERYWHERE.values(), ids=SAME_EVERYWHERE)
def test_a_schema_gives_the_same_answer_in_the_terminal_and_over_http(
    served: RunningServer, command: Callable[..., Json], tmp_path: Path, schema: Json
) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    flags = ["--json-schema", str(tmp_path / "schema.json"), "--temperature", "0", "--max-tokens", "60"]
    printed = command("run", "demo", ASKED["content"], *flags)["data"]
    status, answer = ask(served, response_format=form(schema))
    (choice,) = answer["choices"]
    assert (status, choice["message"]["content"]) == (200, printed["response"])
    assert choice["finish_reason"] == printed["finish_reason"]
