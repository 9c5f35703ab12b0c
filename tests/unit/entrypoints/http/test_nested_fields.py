"""Fields inside of fields: those of OpenAI's SDK are honoured, refused, or tolerated and reported."""

import json
import typing
from pathlib import Path
from typing import Any

import attrs
import pytest
from falcon.testing import TestClient
from openai.types import chat as published
from openai.types import shared_params
from openai.types.chat import chat_completion_content_part_image_param as image_param
from openai.types.chat import chat_completion_content_part_input_audio_param as sound_param
from openai.types.chat import chat_completion_message_function_tool_call_param as call_param
from serving.asking import ask, chat, parts
from serving.parts import CHAT_MODEL

from mlxk.domain.generation.conversation import Conversation
from mlxk.entrypoints.http.openai import sampling
from mlxk.entrypoints.http.openai.chat import messages, tools
from mlxk.entrypoints.http.openai.chat import parts as parts_of_messages
from mlxk.entrypoints.http.openai.chat.messages import UNSUPPORTED as MESSAGE_UNSUPPORTED
from mlxk.entrypoints.http.openai.chat.request import WITHOUT_EFFECT, JsonSchema

PAGE = Path(__file__).parents[4] / "docs" / "server.md"
USER = {"role": "user", "content": "one two three"}
PART = "messages[].content[]"


@pytest.mark.parametrize(
    ("documented", "kind", "path"),
    [
        (published.ChatCompletionDeveloperMessageParam, messages.MessageParam, "messages[]"),
        (published.ChatCompletionSystemMessageParam, messages.MessageParam, "messages[]"),
        (published.ChatCompletionUserMessageParam, messages.MessageParam, "messages[]"),
        (published.ChatCompletionAssistantMessageParam, messages.MessageParam, "messages[]"),
        (published.ChatCompletionToolMessageParam, messages.MessageParam, "messages[]"),
        (published.ChatCompletionContentPartTextParam, parts_of_messages.TextPart, PART),
        (published.ChatCompletionContentPartRefusalParam, parts_of_messages.RefusalPart, PART),
        (published.ChatCompletionContentPartImageParam, parts_of_messages.ImagePart, PART),
        (published.ChatCompletionContentPartInputAudioParam, parts_of_messages.AudioPart, PART),
        (image_param.ImageURL, parts_of_messages.MediaObject, f"{PART}.image_url"),
        (sound_param.InputAudio, parts_of_messages.MediaObject, f"{PART}.input_audio"),
        (published.ChatCompletionMessageFunctionToolCallParam, messages.ToolCallParam, "messages[].tool_calls[]"),
        (call_param.Function, messages.FunctionCall, "messages[].tool_calls[].function"),
        (published.ChatCompletionFunctionToolParam, tools.ToolParam, "tools[]"),
        (shared_params.FunctionDefinition, tools.FunctionDefinition, "tools[].function"),
        (shared_params.response_format_json_schema.JSONSchema, JsonSchema, "response_format.json_schema"),
        (published.ChatCompletionStreamOptionsParam, sampling.StreamOptions, "stream_options"),
    ],
)
def test_no_nested_field_that_openai_documents_is_forgotten(documented: Any, kind: type[Any], path: str) -> None:
    known = {field.name for field in attrs.fields(kind)}
    forgotten = set(typing.get_type_hints(documented)) - known
    assert {name for name in forgotten if f"{path}.{name}" not in WITHOUT_EFFECT} == set()


def test_the_page_for_operators_lists_what_has_no_effect() -> None:
    chapter = PAGE.read_text(encoding="utf-8").partition("## What has no effect")[2].partition("\n## ")[0]
    lines = [line for line in chapter.splitlines() if line.startswith("| `")]
    rows = {tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines}
    assert rows == {
        (f"`{path}`", rule.reason, ", ".join(f"`{json.dumps(value)}`" for value in rule.neutral))
        for path, rule in WITHOUT_EFFECT.items()
    }


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        ({"messages": [{**USER, "colour": 1}, {**USER, "colour": 2}]}, "messages[].colour"),
        ({"messages": [{**USER, "name": "Ada"}]}, "messages[].name"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "x"}}]}
                ]
            },
            "messages[].content[].cache_control",
        ),
        ({"tools": [{"type": "function", "function": {"name": "f", "colour": 1}}]}, "tools[].function.colour"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "description": "d"}}},
            "response_format.json_schema.description",
        ),
        ({"verbosity": "low", "service_tier": "flex", "store": True}, "verbosity, service_tier, store"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"prompt_cache_retention": "24h", "prompt_cache_options": {}}, "prompt_cache_retention"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"colour": 1, "stop": ["a"], "messages": [{**USER, "hue": {}}]}, "messages[].hue, colour"),
    ],
)
def test_a_field_that_changes_nothing_is_reported_wherever_it_stands(fields: dict[str, Any], ignored: str) -> None:
    status, answer, _, headers = ask("/v1/chat/completions", **fields)
    assert status == 200, answer
    assert headers["x-mlxk-ignored-fields"] == ignored


def test_a_stream_reports_what_it_ignores() -> None:
    client = TestClient(parts().application.wsgi, headers={"Host": "localhost", "Content-Type": "application/json"})
    body = {"model": CHAT_MODEL, "messages": [USER], "stream": True, "stream_options": {"colour": 1}}
    answer = client.simulate_post("/v1/chat/completions", body=json.dumps(body))
    assert (answer.status_code, answer.headers["x-mlxk-ignored-fields"]) == (200, "stream_options.colour")


def test_what_clients_of_openai_send_along_is_neither_refused_nor_reported() -> None:
    returned = {"role": "assistant", "content": "Hi.", "refusal": None, "audio": None, "function_call": None}
    returned |= {"annotations": None, "tool_calls": None, "name": None}
    tool = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"x-colour": 1}}}
    status, answer, _, headers = ask(
        "/v1/chat/completions",
        messages=[USER, returned, USER],
        tools=[tool],
        metadata={"colour": "red"},
        verbosity="medium",
        service_tier="auto",
        store=False,
        prompt_cache_retention="in_memory",
        prediction={},
    )
    assert status == 200, answer
    assert "x-mlxk-ignored-fields" not in headers
    status, answer, _, headers = ask("/v1/chat/completions", messages=[USER, {**returned, "annotations": []}, USER])
    assert (status, headers["x-mlxk-ignored-fields"]) == (200, "messages[].annotations")


@pytest.mark.parametrize("content", ["Hm.", None])
@pytest.mark.parametrize(
    ("field", "value"), [("audio", {"id": "audio_1"}), ("function_call", {"name": "f", "arguments": "{}"})]
)
def test_what_is_not_supported_in_a_message_is_refused_by_its_path(field: str, value: Any, content: str | None) -> None:
    said = {"role": "assistant", "content": content, field: value}
    status, answer, reached, _ = ask("/v1/chat/completions", messages=[USER, said, USER])
    assert (status, answer["error"]["type"]) == (400, "parameter_not_supported")
    assert answer["error"]["param"] == f"messages[1].{field}"
    assert answer["error"]["message"] == f"messages[1].{field}: is not supported: {MESSAGE_UNSUPPORTED[field].reason}"
    assert reached is None


@pytest.mark.parametrize("field", ["refusal", "tool_call_id"])
def test_a_field_of_another_role_is_refused(field: str) -> None:
    status, answer, _, _ = ask("/v1/chat/completions", messages=[{**USER, field: "x"}])
    assert (status, answer["error"]["param"]) == (400, f"messages[0].{field}")


@pytest.mark.parametrize(("content", "said"), [(None, "No."), ("", "No."), ("Well.", "Well.\nNo.")])
def test_a_refusal_is_part_of_what_was_said(content: str | None, said: str) -> None:
    _, reached = chat(messages=[USER, {"role": "assistant", "content": content, "refusal": "No."}, USER])
    assert isinstance(reached.prompt, Conversation)
    assert reached.prompt.messages[1].content == said
