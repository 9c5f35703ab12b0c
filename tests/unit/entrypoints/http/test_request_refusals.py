"""What the two requests refuse: what is not supported, by name, and what is not allowed, all of it at once."""

import json
from pathlib import Path
from typing import Any

import pytest
from falcon.testing import TestClient
from serving.asking import ask, parts
from serving.parts import CHAT_MODEL, Parts

from mlxk.entrypoints.http.openai.chat.messages import UNSUPPORTED as MESSAGE_UNSUPPORTED
from mlxk.entrypoints.http.openai.chat.request import UNSUPPORTED as CHAT_UNSUPPORTED
from mlxk.entrypoints.http.openai.completions import UNSUPPORTED as COMPLETION_UNSUPPORTED
from mlxk.entrypoints.settings import ServerSettings

PAGE = Path(__file__).parents[4] / "docs" / "server.md"


def post(path: str, body: bytes) -> tuple[int, Any]:
    """Send bytes; return status and answer."""
    client = TestClient(parts().application.wsgi, headers={"Host": "localhost", "Content-Type": "application/json"})
    response = client.simulate_post(path, body=body)
    return response.status_code, response.json


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}

REFUSED = {
    "audio": {"voice": "alloy", "format": "wav"},
    "best_of": 2,
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "modalities": ["text", "audio"],
    "moderation": {"model": "m"},
    "suffix": "end",
    "web_search_options": {},
}


def test_every_unsupported_field_has_a_case_here() -> None:
    assert {*CHAT_UNSUPPORTED, *COMPLETION_UNSUPPORTED} == set(REFUSED)


def test_the_page_for_operators_lists_what_is_refused_and_why() -> None:
    def shown(values: tuple[object, ...]) -> str:
        return ", ".join(f"`{json.dumps(value)}`" for value in values)

    in_messages = {f"messages[].{name}": rule for name, rule in MESSAGE_UNSUPPORTED.items()}
    table = {**CHAT_UNSUPPORTED, **COMPLETION_UNSUPPORTED, **in_messages}
    rows = {(f"`{name}`", field.reason, shown(field.neutral)) for name, field in table.items()}
    chapter = PAGE.read_text(encoding="utf-8").partition("## What is refused")[2].partition("\n## ")[0]
    lines = [line for line in chapter.splitlines() if line.startswith("| `")]
    assert {tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines} == rows


@pytest.mark.parametrize(("field", "value"), REFUSED.items())
def test_what_is_not_supported_is_refused_by_name(field: str, value: Any) -> None:
    path = "/v1/chat/completions" if field in CHAT_UNSUPPORTED else "/v1/completions"
    status, answer, reached, _ = ask(path, **{field: value})
    assert status == 400
    assert answer["error"]["type"] == "parameter_not_supported"
    assert answer["error"]["param"] == field
    assert answer["error"]["message"].startswith(f"{field}: ")
    assert reached is None


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        (path, field, value)
        for path, table in (("/v1/chat/completions", CHAT_UNSUPPORTED), ("/v1/completions", COMPLETION_UNSUPPORTED))
        for field, rule in table.items()
        for value in (*rule.neutral, None)
    ],
)
def test_what_asks_for_nothing_special_is_accepted(path: str, field: str, value: Any) -> None:
    status, answer, _, headers = ask(path, **{field: value})
    assert status == 200, answer
    assert "x-mlxk-ignored-fields" not in headers


def test_unknown_fields_are_tolerated_and_reported() -> None:
    status, _, _, headers = ask("/v1/chat/completions", debug_model_override="x", **{"evil\r\nname": 1})
    assert status == 200
    assert headers["x-mlxk-ignored-fields"] == "debug_model_override, ?"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "0.7"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"seed": "x"}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": {}}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"metadata": {"k": 1}}, "metadata"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "custom", "function": {"name": "f"}}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice.function.name"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
        ({"thinking_budget": -1}, "thinking_budget"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "function", "content": "x", "name": "f"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].video"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(fields: dict[str, Any], param: str) -> None:
    status, answer, reached, _ = ask("/v1/chat/completions", **fields)
    assert status == 400
    assert answer["error"]["type"] == "validation_error"
    assert answer["error"]["param"] == param
    assert reached is None


HALF = "\ud800"
WITH_HALF = {"type": "object", "properties": {"a": {"enum": ["\udfff"]}}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"metadata": {HALF: "a"}}, "metadata"),
        ({"metadata": {"a": HALF}}, "metadata.a"),
        ({"model": f"a{HALF}"}, "model"),
        ({"stop": ["a", HALF]}, "stop[1]"),
        ({HALF: 1}, None),
        ({"unknown": [{"a": HALF}]}, "unknown[0].a"),
        ({"unknown": {"a" * 65: HALF}}, "unknown.?"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": WITH_HALF}}]},
            "tools[0].function.parameters.properties.a.enum[0]",
        ),
    ],
)
def test_half_a_character_is_refused_wherever_it_stands(fields: dict[str, Any], param: str | None) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        status, answer, reached, _ = ask(path, **fields)
        assert (status, answer["error"]["type"], answer["error"]["param"]) == (400, "validation_error", param)
        assert "half a surrogate pair" in answer["error"]["message"]
        assert reached is None


@pytest.mark.parametrize("body", [{"model": HALF}, {HALF: "x"}])
def test_half_a_character_is_refused_in_what_is_to_be_unloaded(body: dict[str, str]) -> None:
    assert post("/v1/unload", json.dumps(body).encode())[0] == 400


@pytest.mark.parametrize(
    ("model", "message"), [(3, "model: must be a string"), ("no/such", "model: 'no/such' is not loaded")]
)
def test_what_cannot_be_unloaded_is_named(model: Any, message: str) -> None:
    status, answer = post("/v1/unload", json.dumps({"model": model}).encode())
    assert (status, answer["error"]["message"]) == (400, message)


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1" + "0" * 400])
def test_a_number_beyond_all_numbers_is_refused(number: str) -> None:
    status, answer = post("/v1/completions", b'{"model": "m", "prompt": "a", "temperature": %s}' % number.encode())
    assert (status, answer["error"]["message"]) == (400, "temperature: must be a finite number")


def test_half_a_character_is_refused_unescaped_too() -> None:
    body = json.dumps({"model": CHAT_MODEL, "prompt": "<>"}).encode()
    assert post("/v1/completions", body)[0] == 200
    status, answer = post("/v1/completions", body.replace(b"<>", b"\xed\xa0\x80"))
    assert (status, answer["error"]["message"]) == (400, "The body is not valid JSON: byte 39 is not UTF-8.")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"model": "x",\n "prompt": }', "expecting value at line 2, column 12"),
        (b'{"temperature": NaN}', "NaN and Infinity are no JSON"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "a number in it has too many digits"),
        (b"", "expecting value at line 1, column 1"),
    ],
    ids=["a value is missing", "NaN", "digits", "empty"],
)
def test_what_is_wrong_with_json_and_where_is_said(body: bytes, said: str) -> None:
    status, answer = post("/v1/completions", body)
    assert (status, answer["error"]["message"]) == (400, f"The body is not valid JSON: {said}.")


def test_a_bound_of_many_digits_is_written_out() -> None:
    status, answer = post("/v1/completions", json.dumps({"model": CHAT_MODEL, "prompt": [2**31]}).encode())
    assert (status, "must be at most 2147483647" in answer["error"]["message"]) == (400, True)


@pytest.mark.parametrize("text", ["\U0001f600", "\\ud800", "caf\u00e9"])
def test_a_whole_character_is_taken_however_it_is_written(text: str) -> None:
    for ascii_only in (True, False):
        body = json.dumps({"model": CHAT_MODEL, "prompt": text}, ensure_ascii=ascii_only).encode()
        status, answer = post("/v1/completions", body)
        assert (status, answer["choices"][0]["text"]) == (200, text)


@pytest.mark.parametrize("keyword", ["$defs", "definitions"])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_definitions_in_a_tool_that_are_no_object_are_named(keyword: str, choice: str) -> None:
    tools = [TOOL, {"type": "function", "function": {"name": "f", "parameters": {keyword: [1]}}}]
    status, answer, _, _ = ask("/v1/chat/completions", tools=tools, tool_choice=choice)
    assert (status, answer["error"]["param"]) == (400, f"tools[1].function.parameters.{keyword}")


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/chat/completions", {"n": 3}, "n"),
        ("/v1/completions", {"n": 3}, "n"),
        ("/v1/completions", {"prompt": ["a"] * 3}, "prompt"),
        ("/v1/completions", {"prompt": ["a", "b"], "n": 2}, "n"),
    ],
)
def test_more_answers_than_there_is_ever_room_for_are_refused_by_the_field_that_asks(
    path: str, fields: dict[str, Any], param: str
) -> None:
    small = Parts(settings=ServerSettings(max_streams=1, max_queue=1))
    client = TestClient(small.application.wsgi, headers={"Host": "localhost", "Content-Type": "application/json"})
    required = {"model": CHAT_MODEL, "prompt": "a", "messages": [{"role": "user", "content": "a"}]}
    answer = client.simulate_post(path, body=json.dumps({**required, **fields}))
    small.close()
    assert (answer.status_code, answer.json["error"]["param"]) == (400, param)
    assert [problem["param"] for problem in answer.json["error"]["detail"]["problems"]] == [param]


def test_prompts_and_their_answers_together_are_bounded_and_the_bound_is_said() -> None:
    assert ask("/v1/completions", prompt=["a"] * 64, n=2)[0] == 200
    status, answer, _, _ = ask("/v1/completions", prompt=["a"] * 43, n=3)
    assert (status, answer["error"]["param"]) == (400, "n")
    assert answer["error"]["message"] == "n: and prompt together ask for more than 128 answers"


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "./model", "~", "a\u0000b", "a@", " "], ids=lambda name: repr(name[:9])
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_name_that_no_model_can_have_is_a_fault_of_the_field_model(path: str, name: str) -> None:
    status, answer, _, _ = ask(path, model=name)
    assert (status, answer["error"]["type"], answer["error"]["param"]) == (400, "validation_error", "model")
    assert [problem["param"] for problem in answer["error"]["detail"]["problems"]] == ["model"]


def test_everything_wrong_is_said_at_once() -> None:
    _, answer, _, _ = ask("/v1/chat/completions", temperature="hot", n=0, moderation={}, stop=[5])
    problems = [problem["param"] for problem in answer["error"]["detail"]["problems"]]
    assert sorted(problems) == ["moderation", "n", "stop[0]", "temperature"]


@pytest.mark.parametrize("part", ["image_url", "input_audio"])
def test_a_text_model_refuses_pictures_and_sound_by_their_place(part: str) -> None:
    content = {
        "image_url": {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        "input_audio": {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
    }[part]
    status, answer, _, _ = ask("/v1/chat/completions", messages=[{"role": "user", "content": [content]}])
    assert status == 422
    assert answer["error"]["type"] == "capability_not_supported"
    assert answer["error"]["param"] == "messages[0].content[0]"


@pytest.mark.parametrize(
    ("thinking", "in_the_template", "taken"),
    [
        (True, False, False),
        (False, True, False),
        (False, "no", True),
        (True, True, True),
        (None, False, True),
        (True, None, True),
    ],
)
def test_what_the_template_is_told_of_reasoning_must_agree_too(
    thinking: Any, in_the_template: Any, taken: bool
) -> None:
    options = {"enable_thinking": in_the_template}
    status, answer, _, _ = ask("/v1/chat/completions", enable_thinking=thinking, chat_template_kwargs=options)
    assert status == (200 if taken else 400)
    assert taken or answer["error"]["param"] == "chat_template_kwargs.enable_thinking"


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ([1, -2], "prompt[1]"),
        ([1, "x"], "prompt[1]"),
        ([[1], ["x"]], "prompt[1][0]"),
        ([[]], "prompt[0]"),
        ([True], "prompt[0]"),
    ],
)
def test_token_ids_that_are_none_are_named(prompt: Any, param: str) -> None:
    status, answer, _, _ = ask("/v1/completions", prompt=prompt)
    assert (status, answer["error"]["param"]) == (400, param)


def test_no_message_repeats_what_the_client_sent() -> None:
    canary = "canary-7f3a"
    for fields in ({"stop": {canary: 1}}, {"messages": canary}, {"role": canary}, {"temperature": canary}):
        _, answer, _, _ = ask("/v1/chat/completions", **fields)
        assert canary not in str(answer.get("error", ""))


NOTHING: list[tuple[str, str, list[Any]]] = [
    ("/v1/chat/completions", "max_completion_tokens", [-1]),
    ("/v1/chat/completions", "max_tokens", [-1, -1.0]),
    ("/v1/chat/completions", "top_logprobs", [0]),
    ("/v1/chat/completions", "response_format", [{}, [], "", {"type": "text"}]),
    ("/v1/chat/completions", "metadata", [{}, []]),
    ("/v1/chat/completions", "stream_options", [{}, [], {"include_usage": False}, {"include_usage": None}]),
    ("/v1/chat/completions", "logit_bias", [{}, []]),
    ("/v1/chat/completions", "stop", ["", [], [""]]),
    ("/v1/chat/completions", "user", [""]),
    ("/v1/chat/completions", "tools", [[]]),
    ("/v1/completions", "logprobs", [False]),
    ("/v1/completions", "logit_bias", [[]]),
    ("/v1/completions", "stream_options", [{}]),
    ("/v1/completions", "stop", [""]),
    ("/v1/completions", "max_tokens", [-1]),
]


@pytest.mark.parametrize(
    ("path", "field", "value"), [(path, field, value) for path, field, values in NOTHING for value in (*values, None)]
)
def test_a_value_that_asks_for_nothing_counts_as_absent(path: str, field: str, value: Any) -> None:
    status, answer, reached, headers = ask(path, **{field: value})
    _, _, plain, _ = ask(path)
    assert status == 200, answer
    assert reached is not None and plain is not None
    assert reached.settings == plain.settings
    assert "x-mlxk-ignored-fields" not in headers


@pytest.mark.parametrize(
    ("field", "value"), [("max_tokens", -2), ("logprobs", True), ("top_k", -2), ("logit_bias", [1]), ("n", False)]
)
def test_a_value_that_is_close_to_nothing_is_refused(field: str, value: Any) -> None:
    assert ask("/v1/completions", **{field: value})[0] == 400
