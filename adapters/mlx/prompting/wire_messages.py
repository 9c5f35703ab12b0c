"""Conversations in the form that chat templates expect: OpenAI's messages and tools, as JSON values."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.conversation import Conversation, Message, ToolCall

WireMessage = dict[str, Any]
"""A message."""

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Names under which templates read the reasoning of a message."""

_ARGUMENTS = "messages[{}].tool_calls[{}].function.arguments"
"""Path of a call's arguments in a request, by message and call."""

_SURROGATE = "\\ud"
"""Beginning of the JSON escape of a surrogate, in lower case."""


@attrs.frozen
class WirePrompt:
    """A conversation as a template reads it."""

    messages: tuple[WireMessage, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    has_empty_lists: bool = False
    """Whether tools and documents that there are none of are empty lists, instead of null."""


def wire_prompt(conversation: Conversation) -> WirePrompt:
    """Return a conversation in the form that templates expect.

    Raises:
        ValidationError: A tool is no JSON object, or arguments are JSON but no valid object.
    """
    tools = tuple(_parsed(tool, f"tools[{index}]") for index, tool in enumerate(conversation.tools))
    return WirePrompt(tuple(wire_messages(conversation.messages)), tools)


def wire_messages(messages: Sequence[Message]) -> list[WireMessage]:
    """Return messages in the form that templates expect: OpenAI's, with arguments as objects and results named.

    Incomplete arguments remain text.

    Raises:
        ValidationError: Arguments are JSON, but no valid object.
    """
    names = {call.id: call.name for message in messages for call in message.tool_calls if call.id}
    return [_wire_message(message, index, names) for index, message in enumerate(messages)]


def _wire_message(message: Message, index: int, names: dict[str, str]) -> WireMessage:
    wire: WireMessage = {"role": message.role.value, "content": message.content}
    if message.reasoning:
        wire |= dict.fromkeys(REASONING_KEYS[:2], message.reasoning)
    if message.tool_calls:
        calls = enumerate(message.tool_calls)
        wire["tool_calls"] = [_wire_call(call, _ARGUMENTS.format(index, place)) for place, call in calls]
    if message.tool_call_id is not None:
        wire["tool_call_id"] = message.tool_call_id
        if message.tool_call_id in names:
            wire["name"] = names[message.tool_call_id]
    return wire


def _wire_call(call: ToolCall, place: str) -> dict[str, object]:
    arguments = _parsed(call.arguments, place, or_text=True) if call.arguments.strip() else {}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _parsed(text: str, place: str, *, or_text: bool = False) -> Any:  # noqa: ANN401 - what JSON holds
    """Return the JSON object in a text; with ``or_text`` the text itself where it is no JSON."""
    try:
        value = json.loads(text)
        if _SURROGATE in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValidationError.in_field(place, "is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValidationError.in_field(place, "must not contain half a surrogate pair") from error
    except ValueError as error:
        if or_text:
            return text
        raise ValidationError.in_field(place, f"is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValidationError.in_field(place, "must be a JSON object")
    return value
