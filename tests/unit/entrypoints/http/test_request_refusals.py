"""What the two requests refuse: what is not supported, by name, and what is not allowed, all of it at once."""

import json
from pathlib import Path
from typing import Any

import pytest
from serving.asking import ask, chat

from mlxk.entrypoints.http.requests.support import CHAT_UNSUPPORTED, COMPLETION_UNSUPPORTED

PAGE = Path(__file__).parents[4] / "docs" / "server.md"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}

REFUSED = {
    "audio": {"voice": "alloy", "format": "wav"},
    "best_of": 2,
    "function_call": "auto",
    "functions": [{"name": "f"}],
    "modalities": ["text", "audio"],
    "moderation": {"model": "m"},
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_options": {"mode": "x"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "high",
    "service_tier": "flex",
    "store": True,
    "suffix": "end",
    "verbosity": "low",
    "web_search_options": {},
}


def test_every_unsupported_field_has_a_case_here() -> None:
    assert {*CHAT_UNSUPPORTED, *COMPLETION_UNSUPPORTED} == set(REFUSED)


def test_the_page_for_operators_lists_what_is_refused_and_why() -> None:
    def shown(values: tuple[object, ...]) -> str:
        return ", ".join(f"`{json.dumps(value)}`" for value in values)

    table = {**CHAT_UNSUPPORTED, **COMPLETION_UNSUPPORTED}
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
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"seed": "x"}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
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
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0]"),
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


def test_everything_wrong_is_said_at_once() -> None:
    _, answer, _, _ = ask("/v1/chat/completions", temperature="hot", n=0, store=True, stop=[""])
    problems = [problem["param"] for problem in answer["error"]["detail"]["problems"]]
    assert sorted(problems) == ["n", "stop[0]", "store", "temperature"]


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


def test_a_form_and_tools_are_not_combined() -> None:
    status, answer, _, _ = ask("/v1/chat/completions", tools=[TOOL], response_format={"type": "json_object"})
    assert (status, answer["error"]["param"]) == (400, "response_format")
    assert chat(tools=[TOOL], tool_choice="none", response_format={"type": "json_object"})


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


def test_token_ids_cannot_be_echoed() -> None:
    status, answer, _, _ = ask("/v1/completions", prompt=[1, 2], echo=True)
    assert (status, answer["error"]["type"], answer["error"]["param"]) == (400, "parameter_not_supported", "echo")


def test_no_message_repeats_what_the_client_sent() -> None:
    canary = "canary-7f3a"
    for fields in ({"stop": {canary: 1}}, {"messages": canary}, {"role": canary}, {"temperature": canary}):
        _, answer, _, _ = ask("/v1/chat/completions", **fields)
        assert canary not in str(answer.get("error", ""))
