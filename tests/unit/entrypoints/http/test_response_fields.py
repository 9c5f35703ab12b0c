"""Every field, item, tool and choice of OpenAI's SDK: honoured, tolerated and named, or refused with its error."""

import typing
from typing import Any

import attrs
import pytest
from openai.types.responses import response_create_params as params
from openai.types.responses import (
    response_includable,
    response_input_content_param,
    response_input_item_param,
    tool_param,
)
from openai.types.shared_params import Reasoning
from serving.asking import ask, parts
from serving.parts import CHAT_MODEL
from serving.responses import ADD, AGENTS, PATH, SCHEMA, respond

from mlxk.domain.generation.conversation import Conversation, Message
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import Effort
from mlxk.entrypoints.http.responses.conversation import PART_KINDS
from mlxk.entrypoints.http.responses.items import ITEM_KINDS, LEFT_OUT, UNREADABLE
from mlxk.entrypoints.http.responses.request import UNSUPPORTED, WITHOUT_EFFECT, ResponseRequest

PNG = "data:image/png;base64,iVBORw0KGgo="


def refused(**fields: Any) -> tuple[int, str, str]:
    """Send a request that is to be refused; return status, code and field."""
    status, answer, reached, _ = ask(PATH, **{"input": "one two three", **fields})
    assert reached is None
    return status, answer["error"]["code"], answer["error"]["param"]


def turns(reached: GenerationRequest) -> tuple[Message, ...]:
    """Return the messages that reached the engine."""
    assert isinstance(reached.prompt, Conversation)
    return reached.prompt.messages


def published(*kinds: Any) -> set[str]:
    """Return the fields that OpenAI documents."""
    return {name for kind in kinds for name in typing.get_type_hints(kind)}


def types_in(union: Any) -> set[str]:
    """Return the values of the field ``type`` in the members of a union."""
    found: set[str] = set()
    for member in typing.get_args(union):
        hint = typing.get_type_hints(member).get("type")
        while typing.get_origin(hint) not in {typing.Literal, None}:
            hint = typing.get_args(hint)[0]
        found |= set(typing.get_args(hint))
    return found


REQUEST_FIELDS = published(
    params.ResponseCreateParamsBase, params.ResponseCreateParamsNonStreaming, params.ResponseCreateParamsStreaming
)
CHAT_ONLY = {
    "max_tokens",
    "messages",
    "n",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
    "stop",
    "ignore_eos",
    "reasoning_effort",
    "enable_thinking",
    "thinking_budget",
    "thinking_budget_tokens",
    "reasoning_budget_tokens",
    "thinking_start_token",
    "thinking_end_token",
    "thinking",
    "chat_template_kwargs",
    "client_metadata",
    "background_options",
}
"""Fields beyond OpenAI's: those of chat requests, and those that clients send."""


def test_no_field_that_openai_documents_is_forgotten() -> None:
    known = {field.name for field in attrs.fields(ResponseRequest)} | set(UNSUPPORTED)
    known |= {path for path in WITHOUT_EFFECT if path.isidentifier()}
    assert (REQUEST_FIELDS - known, known - REQUEST_FIELDS) == (set(), CHAT_ONLY)


def test_no_item_part_or_tool_that_openai_documents_is_forgotten() -> None:
    known = {*ITEM_KINDS, *LEFT_OUT, *UNREADABLE}
    assert types_in(response_input_item_param.ResponseInputItemParam) <= known
    assert types_in(response_input_content_param.ResponseInputContentParam) <= set(PART_KINDS)
    for kind in types_in(tool_param.ToolParam) - {"function", "custom", "namespace"}:
        _, _, ignored = respond(tools=[{"type": kind}])
        assert (ignored == "") is (kind in {"local_shell", "shell", "apply_patch"}), kind


@pytest.mark.parametrize(
    ("field", "value", "setting", "expected"),
    [
        ("max_output_tokens", 2, "max_tokens", 2),
        ("max_tokens", 2, "max_tokens", 2),
        ("max_output_tokens", -1, "max_tokens", None),
        ("temperature", 0.5, "temperature", 0.5),
        ("top_p", 0.25, "top_p", 0.25),
        ("top_k", 7, "top_k", 7),
        ("seed", 7, "seed", 7),
        ("stop", "END", "stop", ("END",)),
        ("top_logprobs", 2, "logprobs", 2),
        ("top_logprobs", 0, "logprobs", None),
        ("include", ["message.output_text.logprobs"], "logprobs", 0),
        ("thinking_budget", 9, "thinking_budget", 9),
    ],
)
def test_sampling_fields_reach_the_engine(field: str, value: Any, setting: str, expected: Any) -> None:
    _, reached, ignored = respond(**{field: value})
    assert getattr(reached.settings, setting) == expected
    assert ignored == ""


ECHOED: dict[str, Any] = {
    "instructions": "Be brief.",
    "max_output_tokens": 9,
    "max_tool_calls": 3,
    "metadata": {"run": "7"},
    "parallel_tool_calls": False,
    "prompt_cache_key": "thread",
    "safety_identifier": "ada",
    "store": False,
    "temperature": 0.5,
    "text": {"format": {"type": "text"}},
    "tool_choice": "none",
    "tools": [ADD, AGENTS],
    "top_logprobs": 1,
    "top_p": 0.5,
    "truncation": "auto",
    "user": "ada",
}


def test_a_response_repeats_its_request() -> None:
    answer, _, ignored = respond(**ECHOED)
    assert {name: answer[name] for name in ECHOED} == ECHOED
    assert ignored == ""


TOLERATED = [
    ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
    ({"reasoning": {"generate_summary": "auto"}}, "reasoning.generate_summary"),
    ({"reasoning": {"context": "all_turns"}}, "reasoning.context"),
    ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"client_metadata": {"turn": "1"}}, "client_metadata"),
    ({"prompt_cache_retention": "24h"}, "prompt_cache_retention"),
    ({"prompt_cache_options": {"mode": "explicit"}}, "prompt_cache_options"),
    ({"include": ["reasoning.encrypted_content"]}, "include[0]"),
    ({"include": ["message.output_text.logprobs", "file_search_call.results"]}, "include[1]"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"colour": "red"}, "colour"),
    ({"tools": [ADD, {"type": "web_search", "external_web_access": True}]}, "tools[1]"),
    ({"tools": [{"type": "shell", "environment": {"type": "container_auto"}}]}, "tools[0]"),
    ({"tools": [{"type": "tool_search"}]}, "tools[0]"),
    ({"tools": [{**ADD, "defer_loading": True}]}, "tools[].defer_loading"),
    ({"input": [{"role": "user", "content": "hi", "phase": "commentary"}]}, "input[].phase"),
    ({"input": [{"role": "user", "content": "hi"}, {"type": "web_search_call", "id": "ws_1"}]}, "input[1]"),
    (
        {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}, {"role": "user", "content": "hi"}]},
        "input[].encrypted_content",
    ),
]


@pytest.mark.parametrize(("fields", "named"), TOLERATED)
def test_what_has_no_effect_is_tolerated_and_named(fields: dict[str, Any], named: str) -> None:
    assert respond(**fields)[2] == named


def test_every_entry_of_include_is_known() -> None:
    entries = list(typing.get_args(response_includable.ResponseIncludable))
    ignored = respond(include=entries)[2].split(", ")
    kept = {"message.output_text.logprobs", "message.input_image.image_url"}
    assert ignored == [f"include[{index}]" for index, entry in enumerate(entries) if entry not in kept]


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"background": True}, "parameter_not_supported", "background"),
    ({"conversation": "conv_1"}, "parameter_not_supported", "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "parameter_not_supported", "prompt"),
    ({"context_management": [{"type": "compaction"}]}, "parameter_not_supported", "context_management"),
    ({"moderation": {"model": "m"}}, "parameter_not_supported", "moderation"),
    ({"image": {"context_compression": "auto"}}, "parameter_not_supported", "image"),
    ({"access_programs": {"cyber": "standard"}}, "parameter_not_supported", "access_programs"),
    ({"n": 2}, "parameter_not_supported", "n"),
    ({"input": [{"type": "computer_call"}]}, "parameter_not_supported", "input[0].type"),
    ({"input": [{"type": "compaction", "encrypted_content": "x"}]}, "parameter_not_supported", "input[0].type"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
        "parameter_not_supported",
        "input[0].content[0].file_id",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
        "parameter_not_supported",
        "input[0].content[0].file_id",
    ),
    ({"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}, "parameter_not_supported", "tool_cho"),
    ({"tool_choice": {"type": "mcp", "server_label": "m"}}, "parameter_not_supported", "tool_choice.type"),
    (
        {"tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [{"type": "web_search"}]}},
        "parameter_not_supported",
        "tool_choice.tools",
    ),
    ({"input": None}, "validation_error", "input"),
    ({"input": []}, "validation_error", "input"),
    ({"input": 7}, "validation_error", "input"),
    ({"input": [7]}, "validation_error", "input[0]"),
    ({"input": [{"type": [], "role": "user"}]}, "validation_error", "input[0]"),
    ({"input": [{"role": "user", "content": [{"type": {}}]}]}, "validation_error", "input[0].content[0].type"),
    ({"input": [{"role": "user", "content": ["hi"]}]}, "validation_error", "input[0].content[0]"),
    ({"input": [{"role": "user", "content": 7}]}, "validation_error", "input[0].content"),
    ({"tools": [ADD], "tool_choice": 7}, "validation_error", "tool_choice"),
    ({"tools": [{"type": []}]}, "validation_error", "tools[0]"),
    ({"tool_choice": {"type": []}}, "validation_error", "tool_choice"),
    ({"input": [{"type": "banana"}]}, "validation_error", "input[0].type"),
    ({"input": [{"role": "tool", "content": "x"}]}, "validation_error", "input[0].role"),
    ({"input": [{"role": "user"}]}, "validation_error", "input[0].content"),
    ({"input": [{"role": "user", "content": [{"type": "x"}]}]}, "validation_error", "input[0].content[0].type"),
    ({"input": [{"type": "function_call", "name": "f"}]}, "validation_error", "input[0].arguments"),
    ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "validation_error", "input[0].output"),
    (
        {"input": [{"role": "assistant", "content": [{"type": "input_image", "image_url": PNG}]}]},
        "validation_error",
        "input[0].content[0].type",
    ),
    (
        {"input": [{"role": "system", "content": [{"type": "input_image", "image_url": PNG}]}]},
        "validation_error",
        "input[0].content[0].type",
    ),
    ({"messages": [{"role": "user", "content": "x"}]}, "validation_error", "messages"),
    ({"max_tokens": 1, "max_output_tokens": 2}, "validation_error", "max_output_tokens"),
    ({"max_output_tokens": 0}, "validation_error", "max_output_tokens"),
    ({"top_logprobs": 21}, "validation_error", "top_logprobs"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "validation_error", "text.format.schema"),
    ({"reasoning": {"effort": "extreme"}}, "validation_error", "reasoning.effort"),
    ({"tools": [{"type": "function"}]}, "validation_error", "tools[0].name"),
    ({"tools": [{"type": "namespace", "name": "x", "tools": [{"type": "web"}]}]}, "validation_error", "tools[0].tools"),
    (
        {"tools": [{**ADD, "parameters": {"$defs": 7}}]},
        "validation_error",
        "tools[0].parameters.$defs",
    ),
    ({"tool_choice": {"type": "function", "name": "add"}}, "validation_error", "tool_choice.name"),
    ({"tool_choice": "required"}, "validation_error", "tool_choice"),
    ({"tool_choice": {"type": "allowed_tools", "tools": [{"type": "custom", "name": "x"}]}}, "validation_error", "too"),
    ({"truncation": "sometimes"}, "validation_error", "truncation"),
    ({"model": "no/such"}, "model_not_found", "model"),
    ({"previous_response_id": "resp_gone"}, "previous_response_not_found", "previous_response_id"),
    ({"input": [{"type": "item_reference", "id": "msg_gone"}]}, "not_found", "input[0].id"),
]


@pytest.mark.parametrize(("fields", "code", "param"), REFUSED)
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], code: str, param: str) -> None:
    status, got, field = refused(**fields)
    assert (got, field.startswith(param)) == (code, True), field
    assert status == (404 if code.endswith("not_found") else 400)


def test_a_field_of_messages_is_named_as_such() -> None:
    status, answer, _, _ = ask(PATH, messages=[{"role": "user", "content": [{"type": "input_image"}]}])
    assert (status, answer["error"]["param"]) == (400, "messages[0].content[0].image_url")


def test_messages_are_the_input_by_another_name() -> None:
    status, answer, reached, _ = ask(
        "/responses",
        messages=[{"role": "user", "content": [{"type": "input_text", "text": "one two"}]}],
        max_tokens=1,
    )
    assert reached is not None
    assert (status, reached.settings.max_tokens) == (200, 1)
    assert answer["output"][0]["content"][0]["text"] == "one"


@pytest.mark.parametrize(
    ("effort", "expected"),
    [("none", Effort.NONE), ("low", Effort.LOW), ("xhigh", Effort.XHIGH), ("max", Effort.XHIGH), (None, None)],
)
def test_the_effort_reaches_the_template(effort: str | None, expected: Effort | None) -> None:
    answer, reached, _ = respond(reasoning={"effort": effort})
    assert reached.effort is expected
    assert answer["reasoning"] == {"effort": effort, "summary": None}


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema", "name": "city", "schema": SCHEMA, "strict": True},
        {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}},
    ],
)
def test_a_schema_is_enforced(form: Any) -> None:
    _, reached, ignored = respond(text={"format": form})
    assert reached.settings.grammar is not None
    assert '"city"' in reached.settings.grammar.text
    assert ignored == ""


def test_log_probabilities_come_with_the_text() -> None:
    answer, _, _ = respond(include=["message.output_text.logprobs"], top_logprobs=1)
    [part] = answer["output"][0]["content"]
    assert "".join(token["token"] for token in part["logprobs"]) == part["text"] == "one two three"
    assert all(len(token["top_logprobs"]) == 1 for token in part["logprobs"])


def test_an_empty_input_is_answered_as_clients_probe_with_it() -> None:
    answer, reached, _ = respond(input="", max_output_tokens=1)
    assert [turn.content for turn in turns(reached)] == [""]
    assert answer["status"] in {"completed", "incomplete"}


def test_a_request_names_no_model_that_is_there() -> None:
    assert parts().catalogue.default is None
    assert refused(model=None)[2] == "model"
    assert respond(model=CHAT_MODEL.partition("/")[2])[0]["model"] == CHAT_MODEL.partition("/")[2]


def test_the_fields_of_reasoning_are_known() -> None:
    assert published(Reasoning) == {"effort", "summary", "generate_summary", "context", "mode"}
