"""Requests of this API as chat requests: what each block becomes, and under which name an error reports it."""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from mlxk.entrypoints.http.anthropic.conversation import ChatConversation
from mlxk.entrypoints.http.anthropic.request import CountRequest, MessagesRequest
from mlxk.entrypoints.http.openai.chat import tools as chat_tools
from mlxk.entrypoints.http.openai.chat.jobs import FieldNames
from mlxk.entrypoints.http.openai.chat.request import (
    SCHEMA_FIELD,
    ChatRequest,
    JsonSchema,
    ResponseFormat,
    ThinkingParam,
)

_EFFORTS = {"max": "xhigh"}
"""Efforts by other names than ours."""


@attrs.frozen
class MessagesTranslation:
    """A request as a chat request."""

    chat: ChatRequest
    names: FieldNames
    """The fields of this API by those of the chat request."""
    ignored: Sequence[str]
    """What was left out, as paths for the header."""


def translate(body: CountRequest, *, sees: bool, reasons: bool) -> MessagesTranslation:
    """Translate a request.

    Args:
        body: The request.
        sees: Whether the model takes images; if not, a note stands in their place.
        reasons: Whether the model can reason; if not, a request for it has no effect.
    """
    conversation = ChatConversation(sees=sees)
    conversation.add_system(body.system)
    conversation.add_all(body.messages)
    reasoning, without_effect = _reasoning(body, reasons=reasons)
    tools, tool_names = _tools(body)
    request = ChatRequest(
        model=body.model,
        messages=conversation.messages,
        tools=tools or None,
        tool_choice=_tool_choice(body),
        parallel_tool_calls=False if body.tool_choice and body.tool_choice.disable_parallel_tool_use else None,
        response_format=_response_format(body),
        chunk=conversation.chunk,
        **reasoning,
        **(_sampling(body) if isinstance(body, MessagesRequest) else {}),
    )
    built_in = [f"tools[].{tool.type}" for _, tool in body.built_in_tools]
    ignored = dict.fromkeys([*conversation.ignored, *without_effect, *built_in])
    return MessagesTranslation(
        request, FieldNames({**conversation.names, **tool_names, **_FIXED_NAMES}), tuple(ignored)
    )


_FIXED_NAMES: Mapping[str, str] = {
    SCHEMA_FIELD: "output_config.format.schema",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "stop": "stop_sequences",
    "tool_choice.function": "tool_choice",
}


def _sampling(body: MessagesRequest) -> dict[str, Any]:
    return {
        "max_tokens": max(body.max_tokens, 1),
        "stop": body.stop_sequences,
        "stream": body.stream,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
    }


def _tools(body: CountRequest) -> tuple[list[chat_tools.ToolParam], dict[str, str]]:
    """Return the tools that the client runs, and the names of their fields."""
    tools: list[chat_tools.ToolParam] = []
    names: dict[str, str] = {}
    for place, tool in body.own_tools:
        described = chat_tools.FunctionDefinition(
            name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict
        )
        own = f"tools[{len(tools)}]"
        names |= {own: f"tools[{place}]", f"{own}.function": f"tools[{place}]"}
        names[f"{own}.function.parameters"] = f"tools[{place}].input_schema"
        tools.append(chat_tools.ToolParam(function=described))
    return tools, names


def _reasoning(body: CountRequest, *, reasons: bool) -> tuple[dict[str, Any], list[str]]:
    """Return the fields for reasoning, and what has no effect."""
    fields: dict[str, Any] = {}
    ignored = []
    effort = body.output_config.effort if body.output_config is not None else None
    thinking = body.thinking
    if thinking is not None:
        kind = "adaptive" if thinking.type == "between_tools" else thinking.type
        budget = thinking.budget_tokens if kind == "enabled" and reasons else None
        if thinking.budget_tokens is not None and budget is None:
            ignored.append("thinking.budget_tokens")
        fields["thinking"] = ThinkingParam(type=kind, budget_tokens=budget)
    if effort is not None and thinking is not None and thinking.type == "disabled":
        ignored.append("output_config.effort")
    elif effort is not None:
        fields["reasoning_effort"] = _EFFORTS.get(effort, effort)
    return fields, ignored


def _tool_choice(body: CountRequest) -> chat_tools.ToolChoice:
    choice = body.tool_choice
    if choice is None:
        return None
    if choice.type == "tool":
        return chat_tools.NamedTool(function=chat_tools.FunctionName(name=choice.name or ""))
    return "required" if choice.type == "any" else choice.type


def _response_format(body: CountRequest) -> ResponseFormat | None:
    if body.format is None:
        return None
    return ResponseFormat(type="json_schema", json_schema=JsonSchema(name="output", schema=body.format.schema))
