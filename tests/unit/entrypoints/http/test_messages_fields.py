"""Fields of the Messages API: each one that Anthropic's SDK has is honoured, refused by name, or tolerated."""

import json
import typing
from pathlib import Path
from typing import Any

import anthropic.types as published
import anthropic.types.beta as beta
import attrs
import pytest
from anthropic.types import message_count_tokens_params as count_params
from anthropic.types import message_create_params as create_params
from anthropic.types.beta import message_count_tokens_params as beta_count_params
from anthropic.types.beta import message_create_params as beta_create_params
from serving.messages import (
    ADD,
    CALLED,
    CONTROL,
    IMAGE,
    USER,
    document,
    reached,
    result,
    send,
    text,
    tool,
    turn,
)

from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.settings import Effort
from mlxk.entrypoints.http.anthropic import blocks
from mlxk.entrypoints.http.anthropic.request import (
    UNSUPPORTED,
    WITHOUT_EFFECT,
    AnthropicMessage,
    CountRequest,
    MessagesRequest,
    OutputConfig,
    OutputFormat,
    Thinking,
    ToolChoice,
    ToolDefinition,
)
from mlxk.entrypoints.http.openai.chat.parts import MediaObject
from mlxk.entrypoints.http.requests.validation import Unsupported

PAGE = Path(__file__).parents[4] / "docs" / "apis" / "anthropic.md"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
BLOCK = "messages[].content[]"
PART = f"{BLOCK}.content[]"


def fields_of(*kinds: Any) -> set[str]:
    """Return the fields that the SDK has."""
    return {name for kind in kinds for name in typing.get_type_hints(kind)}


CREATE = fields_of(
    create_params.MessageCreateParamsBase,
    create_params.MessageCreateParamsNonStreaming,
    create_params.MessageCreateParamsStreaming,
    beta_create_params.MessageCreateParamsBase,
)
COUNT = fields_of(count_params.MessageCountTokensParams, beta_count_params.MessageCountTokensParams)


def test_no_field_of_a_request_is_forgotten() -> None:
    for documented, kind in ((CREATE, MessagesRequest), (COUNT, CountRequest)):
        own = {field.name for field in attrs.fields(kind)}
        assert documented - own - set(UNSUPPORTED) - set(WITHOUT_EFFECT) == set()
        assert not own & set(UNSUPPORTED)


@pytest.mark.parametrize(
    ("documented", "kind", "path"),
    [
        (published.UserMessageParam, AnthropicMessage, "messages[]"),
        (published.AssistantMessageParam, AnthropicMessage, "messages[]"),
        (published.SystemMessageParam, AnthropicMessage, "messages[]"),
        (beta.BetaSystemMessageParam, AnthropicMessage, "messages[]"),
        (published.TextBlockParam, blocks.TextBlock, BLOCK),
        (published.TextBlockParam, blocks.TextBlock, "system[]"),
        (published.TextBlockParam, blocks.TextBlock, PART),
        (published.TextBlockParam, blocks.TextBlock, f"{BLOCK}.source.content[]"),
        (published.ImageBlockParam, blocks.ImageBlock, BLOCK),
        (published.ImageBlockParam, blocks.ImageBlock, PART),
        (published.Base64ImageSourceParam, MediaObject, f"{BLOCK}.source"),
        (published.URLImageSourceParam, MediaObject, f"{BLOCK}.source"),
        (published.DocumentBlockParam, blocks.DocumentBlock, BLOCK),
        (published.PlainTextSourceParam, blocks.TextSource, f"{BLOCK}.source"),
        (published.ContentBlockSourceParam, blocks.ContentSource, f"{BLOCK}.source"),
        (published.SearchResultBlockParam, blocks.SearchResultBlock, BLOCK),
        (published.SearchResultBlockParam, blocks.SearchResultBlock, PART),
        (published.ThinkingBlockParam, blocks.ThinkingBlock, BLOCK),
        (published.RedactedThinkingBlockParam, blocks.SkippedBlock, BLOCK),
        (published.ToolUseBlockParam, blocks.ToolUseBlock, BLOCK),
        (published.ToolResultBlockParam, blocks.ToolResultBlock, BLOCK),
        (published.ToolReferenceBlockParam, blocks.ToolReferenceBlock, PART),
        (published.ServerToolUseBlockParam, blocks.SkippedBlock, BLOCK),
        (published.WebSearchToolResultBlockParam, blocks.SkippedBlock, BLOCK),
        (published.ToolParam, ToolDefinition, "tools[]"),
        (published.ToolChoiceAutoParam, ToolChoice, "tool_choice"),
        (published.ToolChoiceAnyParam, ToolChoice, "tool_choice"),
        (published.ToolChoiceToolParam, ToolChoice, "tool_choice"),
        (published.ToolChoiceNoneParam, ToolChoice, "tool_choice"),
        (published.ThinkingConfigEnabledParam, Thinking, "thinking"),
        (published.ThinkingConfigAdaptiveParam, Thinking, "thinking"),
        (published.ThinkingConfigDisabledParam, Thinking, "thinking"),
        (published.ThinkingConfigBetweenToolsParam, Thinking, "thinking"),
        (published.OutputConfigParam, OutputConfig, "output_config"),
        (published.JSONOutputFormatParam, OutputFormat, "output_config.format"),
    ],
)
def test_no_nested_field_is_forgotten(documented: Any, kind: type[Any], path: str) -> None:
    known = {field.name for field in attrs.fields(kind)}
    assert {name for name in fields_of(documented) - known if f"{path}.{name}" not in WITHOUT_EFFECT} == set()


def kinds_of(union: Any) -> set[str]:
    """Return the values of ``type`` in a union of the SDK."""
    found: set[str] = set()
    for each in typing.get_args(union):
        hints = typing.get_type_hints(each) if isinstance(each, type) else {}
        found |= {value for value in typing.get_args(hints.get("type", None)) if isinstance(value, str)}
    return found


def test_every_type_of_block_is_read_skipped_or_refused() -> None:
    documented = kinds_of(published.ContentBlockParam) | kinds_of(beta.BetaContentBlockParam)
    assert len(documented) > 20
    for kind in sorted(documented):
        if kind == "container_upload":
            assert send(messages=[{"role": "user", "content": [{"type": kind, "file_id": "f"}]}])[0] == 400
        elif kind not in blocks.BLOCKS:
            skipped = {"type": kind, "id": "x", "name": "n", "input": {}, "content": [], "tool_use_id": "x", "data": ""}
            turns = [
                {"role": "user", "content": "one"},
                {"role": "assistant", "content": [{"type": "text", "text": "two"}, skipped]},
                {"role": "user", "content": "three"},
            ]
            status, answer, _, headers = send(messages=turns)
            assert (status, answer["content"][0]["text"]) == (200, "one two three")
            assert f"{BLOCK}.{kind}" in headers["x-mlxk-ignored-fields"]


def test_every_tool_that_anthropic_defines_is_left_out_and_named() -> None:
    kinds = (kinds_of(published.ToolUnionParam) | kinds_of(beta.BetaToolUnionParam)) - {"custom"}
    assert len(kinds) > 15
    for kind in kinds:
        status, _, request, headers = send(tools=[{"type": kind, "name": "it"}, ADD])
        assert (status, headers["x-mlxk-ignored-fields"]) == (200, f"tools[].{kind}")
        assert request is not None
        assert isinstance(request.prompt, Conversation)
        (offered,) = request.prompt.tools
        assert json.loads(offered)["function"]["name"] == "add"


@pytest.mark.parametrize(("field", "rule"), UNSUPPORTED.items())
def test_what_is_not_supported_is_refused_by_name(field: str, rule: Unsupported) -> None:
    status, answer, _, _ = send(**{field: {"id": "x"}})
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert answer["error"]["message"] == f"{field}: is not supported: {rule.reason}"
    for value in (None, *rule.neutral):
        assert send(**{field: value})[0] == 200


TOLERATED: dict[str, dict[str, Any]] = {
    "betas": {"betas": ["a"]},
    "billing_policy": {"billing_policy": "x"},
    "cache_control": {"cache_control": CONTROL},
    "context_management": {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}},
    "diagnostics": {"diagnostics": {}},
    "fallback_credit_token": {"fallback_credit_token": "x"},
    "inference_geo": {"inference_geo": "us"},
    "metadata": {"metadata": {"user_id": "x"}},
    "service_tier": {"service_tier": "standard_only"},
    "user_profile_id": {"user_profile_id": "x"},
    "workspace_id": {"workspace_id": "x"},
    "messages[].output_config": {"messages": [*USER, {"role": "system", "content": "x", "output_config": {}}]},
    f"{BLOCK}.cache_control": {"messages": turn(text(cache_control=CONTROL))},
    f"{BLOCK}.citations": {"messages": turn(text(citations=[]))},
    f"{BLOCK}.transformations": {"messages": turn(IMAGE)},
    f"{BLOCK}.toolset_name": {"messages": turn(result(toolset_name="x"))},
    f"{BLOCK}.caller": {"messages": [*USER, {"role": "assistant", "content": [{**CALLED, "caller": {}}]}, *USER]},
    f"{PART}.cache_control": {"messages": turn(result(text(cache_control=CONTROL)))},
    f"{PART}.citations": {"messages": turn(result(text(citations=[])))},
    f"{PART}.transformations": {"messages": turn(result(IMAGE))},
    f"{BLOCK}.source.content[].cache_control": {"messages": turn(document(cache_control=CONTROL))},
    f"{BLOCK}.source.content[].citations": {"messages": turn(document(citations=[]))},
    "system[].cache_control": {"system": [text(cache_control=CONTROL)]},
    "system[].citations": {"system": [text(citations=[])]},
    "thinking.type": {"thinking": {"type": "between_tools"}},
    "tools[].allowed_callers": {"tools": [{**ADD, "allowed_callers": ["direct"]}]},
    "tools[].cache_control": {"tools": [{**ADD, "cache_control": CONTROL}]},
    "tools[].defer_loading": {"tools": [{**ADD, "defer_loading": True}]},
    "tools[].eager_input_streaming": {"tools": [{**ADD, "eager_input_streaming": True}]},
    "tools[].input_examples": {"tools": [{**ADD, "input_examples": [{}]}]},
}


def test_every_tolerated_field_is_tried() -> None:
    assert set(TOLERATED) == set(WITHOUT_EFFECT)


@pytest.mark.parametrize(("path", "fields"), TOLERATED.items())
def test_what_has_no_effect_is_answered_and_named(path: str, fields: dict[str, Any]) -> None:
    status, answer, request, headers = send(**fields)
    assert status == 200, answer
    assert path in headers["x-mlxk-ignored-fields"].split(", ")
    assert "ephemeral" not in str(request)


def test_the_page_lists_what_is_refused_and_what_has_no_effect() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for title, table in (("What is refused", UNSUPPORTED), ("What has no effect", WITHOUT_EFFECT)):
        chapter = page.partition(f"## {title}")[2].partition("\n## ")[0]
        lines = [line for line in chapter.splitlines() if line.startswith("| `")]
        rows = {tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines}
        assert rows == {
            (f"`{path}`", rule.reason, ", ".join(f"`{json.dumps(value)}`" for value in rule.neutral))
            for path, rule in table.items()
        }


def test_sampling_and_limits_reach_the_engine() -> None:
    settings = reached(
        max_tokens=7, temperature=0.5, top_p=0.8, top_k=5, stop_sequences=["a", "b"], thinking={"type": "adaptive"}
    ).settings
    assert (settings.max_tokens, settings.temperature, settings.top_p, settings.top_k) == (7, 0.5, 0.8, 5)
    assert settings.stop == ("a", "b")


@pytest.mark.parametrize(
    ("thinking", "effort", "reasons", "stated", "budget"),
    [
        (None, None, None, None, None),
        ({"type": "disabled"}, "high", False, None, None),
        ({"type": "enabled", "budget_tokens": 2000}, None, True, None, 2000),
        ({"type": "enabled", "budget_tokens": 2000}, "low", True, Effort.LOW, 2000),
        ({"type": "adaptive"}, "medium", None, Effort.MEDIUM, None),
        ({"type": "adaptive"}, "max", None, Effort.XHIGH, None),
        (None, "xhigh", None, Effort.XHIGH, None),
    ],
)
def test_thinking_and_effort(
    thinking: Any, effort: str | None, reasons: bool | None, stated: Effort | None, budget: int | None
) -> None:
    request = reached(thinking=thinking, output_config={"effort": effort})
    assert (request.thinking, request.effort, request.settings.thinking_budget) == (reasons, stated, budget)


def test_a_schema_is_enforced_from_either_place() -> None:
    form = {"type": "json_schema", "schema": SCHEMA}
    for fields in ({"output_config": {"format": form}}, {"output_format": form}):
        assert reached(**fields).settings.grammar is not None


@pytest.mark.parametrize(
    ("choice", "offered", "forced"),
    [
        ({"type": "auto"}, 2, None),
        ({"type": "none"}, 0, None),
        ({"type": "tool", "name": "add"}, 2, "add"),
        ({"type": "any"}, 2, ""),
    ],
)
def test_tool_choice(choice: Any, offered: int, forced: str | None) -> None:
    request = reached(tools=[ADD, tool("sub", a="integer")], tool_choice=choice)
    assert isinstance(request.prompt, Conversation)
    assert len(request.prompt.tools) == offered
    call = request.settings.forced_call
    assert (call is None) is (forced is None)
    assert call is None or (call.name or "") == forced


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": 5}, "model: must be a string, not a number"),
        ({"max_tokens": -1}, "max_tokens: must be at least 0 (got -1)"),
        ({"max_tokens": None}, "max_tokens: must be an integer, not null"),
        ({"messages": []}, "messages: must have at least 1 entries (got 0)"),
        ({"messages": "hi"}, "messages: must be an array, not a string"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role: must be one of user, assistant, system"),
        ({"messages": [{"role": "user"}]}, "messages[0].content: is required"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages: must have a message of the role user"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content: must be a string or an array of blocks"),
        ({"messages": [{"role": "user", "content": [{"type": "x"}]}]}, "messages[0].content[0]: must have a type of"),
        ({"messages": [{"role": "user", "content": [text(), "hi"]}]}, "messages[0].content[1]: must be an object"),
        ({"messages": turn({"type": "document", "source": "x"})}, "messages[2].content[0].source: must be an object"),
        (
            {"messages": turn({"type": "document", "source": {"type": "file", "file_id": "f"}})},
            "messages[2].content[0].source: files by their id are not supported",
        ),
        (
            {"messages": [{"role": "user", "content": [CALLED]}]},
            "messages[0].content[0].type: is not allowed for the role user",
        ),
        (
            {"messages": turn({"type": "document", "source": {"type": "base64", "data": "", "media_type": "x"}})},
            "messages[2].content[0].source: PDF and addresses are not supported",
        ),
        (
            {"messages": turn({"type": "image", "source": {"type": "file", "file_id": "f"}})},
            "messages[2].content[0].source: files by their id are not supported",
        ),
        (
            {"messages": [*USER, {"role": "assistant", "content": [CALLED]}]},
            "messages[1].content: is the assistant's and the last one",
        ),
        ({"temperature": 3}, "temperature: must be at most 2 (got 3)"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences: must have at most 16 entries (got 17)"),
        ({"thinking": {"type": "maybe"}}, "thinking.type: must be one of"),
        ({"output_config": {"effort": "most"}}, "output_config.effort: must be one of"),
        ({"output_config": {"format": {"type": "xml", "schema": {}}}}, "output_config.format.type: must be one of"),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema: is required"),
        ({"tools": [ADD, "sub"]}, "tools[1]: must be an object"),
        ({"tools": [{"name": "", "input_schema": {}}]}, "tools[0].name: must have at least 1 characters (got 0)"),
        (
            {"tools": [{"type": "x", "name": "y"}, {"name": "x", "input_schema": {"$defs": 5}}]},
            "tools[1].input_schema.$defs: must be an object",
        ),
        ({"tool_choice": {"type": "any"}}, "tool_choice: needs tools to choose from"),
        ({"tools": [ADD], "tool_choice": {"type": "tool"}}, "tool_choice.name: is required for the type tool"),
        ({"tools": [ADD], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name: must be one of the tools"),
        (
            {
                "tools": [{"type": "web_search_20250305", "name": "web_search"}],
                "tool_choice": {"type": "tool", "name": "web_search"},
            },
            "tool_choice.name: names a tool that Anthropic's servers run or define",
        ),
    ],
)
def test_what_is_wrong_is_named_by_the_field_of_this_api(fields: dict[str, Any], message: str) -> None:
    status, answer, _, headers = send(**fields)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert message in answer["error"]["message"]
    assert headers["request-id"] == answer["request_id"]
