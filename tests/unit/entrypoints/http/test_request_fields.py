"""Every field of the two requests, checked against the list in OpenAI's SDK: honoured, or refused by name."""

import json
import typing
from typing import Any

import attrs
import pytest
from jsonschema import Draft202012Validator
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params
from serving.asking import chat, complete, parts

from mlxk.domain.generation.conversation import Conversation, Role, ToolCall
from mlxk.domain.generation.grammar import Grammar
from mlxk.domain.generation.settings import SEED_RANGE, Effort
from mlxk.entrypoints.http.openai.chat.request import UNSUPPORTED as CHAT_UNSUPPORTED
from mlxk.entrypoints.http.openai.chat.request import WITHOUT_EFFECT as CHAT_WITHOUT_EFFECT
from mlxk.entrypoints.http.openai.chat.request import ChatRequest
from mlxk.entrypoints.http.openai.completions import UNSUPPORTED as COMPLETION_UNSUPPORTED
from mlxk.entrypoints.http.openai.completions import CompletionRequest

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def published(base: Any, *streaming: Any) -> set[str]:
    """Return the fields OpenAI documents for a request."""
    return {name for kind in (base, *streaming) for name in typing.get_type_hints(kind)}


CHAT_FIELDS = published(
    chat_params.CompletionCreateParamsBase,
    chat_params.CompletionCreateParamsNonStreaming,
    chat_params.CompletionCreateParamsStreaming,
)
COMPLETION_FIELDS = published(
    completion_params.CompletionCreateParamsBase,
    completion_params.CompletionCreateParamsNonStreaming,
    completion_params.CompletionCreateParamsStreaming,
)
OURS = {
    "top_k",
    "min_p",
    "repetition_penalty",
    "chunk",
    "enable_thinking",
    "thinking_budget",
    "thinking_budget_tokens",
    "reasoning_budget_tokens",
    "thinking_start_token",
    "thinking_end_token",
    "reasoning",
    "thinking",
    "chat_template_kwargs",
    "ignore_eos",
    "parse_special",
}


def test_no_field_that_openai_documents_is_forgotten() -> None:
    known = {field.name for field in attrs.fields(ChatRequest)} | {*CHAT_UNSUPPORTED, *CHAT_WITHOUT_EFFECT}
    assert CHAT_FIELDS - known == set()
    known = {field.name for field in attrs.fields(CompletionRequest)} | set(COMPLETION_UNSUPPORTED)
    assert COMPLETION_FIELDS - known == set()


def test_every_field_that_is_ours_is_said_to_be() -> None:
    known = {field.name for field in attrs.fields(ChatRequest)} | set(CHAT_UNSUPPORTED)
    assert known - CHAT_FIELDS == OURS
    known = {field.name for field in attrs.fields(CompletionRequest)} | set(COMPLETION_UNSUPPORTED)
    assert known - COMPLETION_FIELDS == OURS & known


@pytest.mark.parametrize(
    ("field", "value", "setting", "expected"),
    [
        ("max_tokens", 2, "max_tokens", 2),
        ("temperature", 0.5, "temperature", 0.5),
        ("temperature", 0, "temperature", 0.0),
        ("top_p", 0.25, "top_p", 0.25),
        ("top_k", 7, "top_k", 7),
        ("min_p", 0.1, "min_p", 0.1),
        ("repetition_penalty", 1.2, "repetition_penalty", 1.2),
        ("presence_penalty", -1.5, "presence_penalty", -1.5),
        ("frequency_penalty", 2, "frequency_penalty", 2.0),
        ("logit_bias", {"5": -100, "7": 3}, "logit_bias", ((5, -100.0), (7, 3.0))),
        ("seed", 7, "seed", 7),
        ("seed", -1, "seed", SEED_RANGE - 1),
        ("seed", 7.0, "seed", 7),
        ("stop", "END", "stop", ("END",)),
        ("stop", ["a", "b"], "stop", ("a", "b")),
    ],
)
def test_sampling_fields_reach_the_engine(field: str, value: Any, setting: str, expected: Any) -> None:
    for send in (chat, complete):
        _, reached = send(**{field: value})
        assert getattr(reached.settings, setting) == expected


def test_max_completion_tokens_is_max_tokens() -> None:
    answer, reached = chat(max_completion_tokens=2)
    assert reached.settings.max_tokens == 2
    assert answer["choices"][0]["finish_reason"] == "length"


def test_n_makes_so_many_choices() -> None:
    answer, _ = chat(n=3)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["usage"]["completion_tokens"] == 9


def test_n_makes_so_many_choices_for_each_prompt() -> None:
    answer, _ = complete(n=2, prompt=["a b", "c"])
    assert [choice["text"] for choice in answer["choices"]] == ["a b", "a b", "c", "c"]
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 6,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def test_logprobs_are_reported_for_every_token() -> None:
    answer, reached = chat(logprobs=True, top_logprobs=1)
    tokens = answer["choices"][0]["logprobs"]["content"]
    assert reached.settings.logprobs == 1
    assert "".join(token["token"] for token in tokens) == "one two three"
    assert bytes(byte for token in tokens for byte in token["bytes"]).decode() == "one two three"
    assert all(len(token["top_logprobs"]) == 1 for token in tokens)


def test_logprobs_of_completions_have_their_own_form() -> None:
    answer, reached = complete(logprobs=0)
    logprobs = answer["choices"][0]["logprobs"]
    assert reached.settings.logprobs == 0
    assert logprobs["tokens"] == ["one", " two", " three"]
    assert logprobs["text_offset"] == [0, 3, 7]
    assert logprobs["token_logprobs"] == [-0.5] * 3


def test_echo_repeats_the_prompt() -> None:
    answer, _ = complete(echo=True)
    assert answer["choices"][0]["text"] == "one two threeone two three"


@pytest.mark.parametrize(
    ("prompt", "expected"), [([5, 6], [(5, 6)]), ([[5, 6], [7]], [(5, 6), (7,)]), (["a"], ["a"]), ("a", ["a"])]
)
def test_a_prompt_may_be_token_ids(prompt: Any, expected: list[Any]) -> None:
    answer, _ = complete(prompt=prompt)
    assert [request.prompt for request in parts().generator.requests] == expected
    assert len(answer["choices"]) == len(expected)


def test_metadata_comes_back() -> None:
    answer, _ = chat(metadata={"job": "7"})
    assert answer["metadata"] == {"job": "7"}


def test_tools_reach_the_engine_unless_none_is_to_be_called() -> None:
    _, reached = chat(tools=[TOOL])
    assert isinstance(reached.prompt, Conversation)
    assert len(reached.prompt.tools) == 1
    _, reached = chat(tools=[TOOL], tool_choice="none")
    assert isinstance(reached.prompt, Conversation)
    assert reached.prompt.tools == ()


@pytest.mark.parametrize(
    ("sent", "effort"),
    [
        (None, None),
        ("none", Effort.NONE),
        ("minimal", Effort.MINIMAL),
        ("xhigh", Effort.XHIGH),
        ("low", Effort.LOW),
        ("medium", Effort.MEDIUM),
        ("high", Effort.HIGH),
    ],
)
def test_the_effort_reaches_the_engine(sent: str | None, effort: Effort | None) -> None:
    _, reached = chat(reasoning_effort=sent)
    assert reached.effort is effort


@pytest.mark.parametrize(
    ("fields", "thinking"),
    [
        ({}, None),
        ({"enable_thinking": True}, True),
        ({"enable_thinking": False}, False),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "medium"}, None),
    ],
)
def test_thinking_is_switched_by_either_field(fields: dict[str, Any], thinking: bool | None) -> None:
    assert chat(**fields)[1].thinking is thinking


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CLOSED = {**SCHEMA, "additionalProperties": False}


def test_thinking_can_be_limited() -> None:
    assert chat(thinking_budget=10)[1].settings.thinking_budget == 10


@pytest.mark.parametrize(
    ("form", "grammar"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Grammar.json_object()),
        ({"type": "json_schema", "json_schema": {"name": "n"}}, Grammar.json_object()),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}},
            Grammar.json_schema(json.dumps(CLOSED)),
        ),
    ],
)
def test_the_form_of_an_answer_is_enforced_by_a_grammar(form: dict[str, Any], grammar: Grammar | None) -> None:
    assert chat(response_format=form)[1].settings.grammar == grammar


def test_a_named_tool_makes_the_answer_its_arguments() -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
    named = {"type": "function", "function": {"name": "weather"}}
    for choice in (named, "required"):
        answer, reached = chat(tools=[tool], tool_choice=choice, messages=[{"role": "user", "content": '{"city": 1}'}])
        call = answer["choices"][0]["message"]["tool_calls"][0]["function"]
        assert reached.settings.grammar == Grammar.json_schema(json.dumps(CLOSED))
        assert call == {"name": "weather", "arguments": '{"city": 1}'}
        assert answer["choices"][0]["message"]["content"] is None
        assert answer["choices"][0]["finish_reason"] == "tool_calls"


def test_of_several_tools_one_has_to_be_called() -> None:
    first = {"$defs": {"C": {"type": "string"}}, "type": "object", "properties": {"c": {"$ref": "#/$defs/C"}}}
    second = {"definitions": {"C": {"type": "integer"}}, "properties": {"c": {"$ref": "#/definitions/C"}}}
    tools = [
        {"type": "function", "function": {"name": "one", "parameters": first}},
        {"type": "function", "function": {"name": "two", "parameters": second}},
    ]
    said = '{"name": "two", "arguments": {"c": 1}}'
    answer, reached = chat(tools=tools, tool_choice="required", messages=[{"role": "user", "content": said}])
    call = answer["choices"][0]["message"]["tool_calls"][0]["function"]
    assert call == {"name": "two", "arguments": '{"c": 1}'}
    assert reached.settings.grammar is not None
    schema = json.loads(reached.settings.grammar.text)
    for document, accepted in (
        ({"name": "one", "arguments": {"c": "x"}}, True),
        ({"name": "two", "arguments": {"c": 1}}, True),
        ({"name": "one", "arguments": {"c": 1}}, False),
        ({"name": "three", "arguments": {}}, False),
    ):
        assert Draft202012Validator(schema).is_valid(document) is accepted


def test_a_call_that_was_cut_off_stays_text() -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("one", "two")]
    answer, _ = chat(tools=tools, tool_choice="required", max_tokens=1)
    choice = answer["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one", "length")
    assert "tool_calls" not in choice["message"]


def test_every_role_and_text_part_is_part_of_the_conversation() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    _, reached = chat(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "1+1?", "name": "ada"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "2", "tool_call_id": "c1"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        ]
    )
    assert isinstance(reached.prompt, Conversation)
    turns = reached.prompt.messages
    assert [turn.role for turn in turns] == [
        Role.SYSTEM,
        Role.SYSTEM,
        Role.USER,
        Role.ASSISTANT,
        Role.TOOL,
        Role.ASSISTANT,
    ]
    assert [turn.content for turn in turns] == ["Be brief.", "a\nb", "1+1?", "", "2", "no"]
    assert turns[3].tool_calls == (ToolCall("add", '{"a": 1}', "c1"),)
    assert turns[4].tool_call_id == "c1"


ACCEPTED_AS_THEY_ARE = {
    "user": "ada",
    "prompt_cache_key": "k",
    "safety_identifier": "s",
    "chunk": 2,
    "stream": False,
}


@pytest.mark.parametrize(("field", "value"), ACCEPTED_AS_THEY_ARE.items())
def test_labels_and_defaults_change_nothing(field: str, value: Any) -> None:
    answer, _ = chat(**{field: value})
    assert answer["choices"][0]["message"]["content"] == "one two three"


@pytest.mark.parametrize("field", sorted({field.name for field in attrs.fields(ChatRequest)} - {"model", "messages"}))
def test_null_is_the_same_as_absent(field: str) -> None:
    answer, _ = chat(**{field: None})
    assert answer["choices"][0]["message"]["content"] == "one two three"
