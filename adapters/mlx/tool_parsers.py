"""Reading tool calls with mlx-lm's parsers, one for each family of models.

Owns choosing the parser of a loaded tokenizer and turning whatever it returns or raises into values of ours. Finding
the sections in the stream is ``mlxk.domain.tool_calls``' work, and gpt-oss's channels are ``mlxk.domain.channels``'.
"""

import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlxk.domain.conversation import ToolCall
from mlxk.domain.reasoning import ReasoningFormat, ReasoningStyle
from mlxk.domain.tool_calls import ToolCallFormat

_PARSER_FAULTS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
    Warning,
)
"""What the parsers raise for text that is no call; they read a model's words with regular expressions and literals."""

_JSON_PARSER = ".json_tools"
"""mlx-lm's module for calls written as JSON, whose arguments need no translation."""

_CHANNEL_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([^\s<]+)")


def new_call_id() -> str:
    """Return an id for a call, in OpenAI's form."""
    return f"call_{uuid.uuid4().hex[:24]}"


def tool_call_format(
    tokenizer: Any,  # noqa: ANN401 - mlx-lm has no types to name
    tools: Sequence[str],
    reasoning: ReasoningFormat | None = None,
    new_id: Callable[[], str] = new_call_id,
) -> ToolCallFormat | None:
    """Return how a model writes calls to the tools on offer.

    Args:
        tokenizer: mlx-lm's wrapper.
        tools: Function definitions, each a JSON object as text; some parsers take the types of arguments from them.
        reasoning: How the model marks its reasoning: one with channels has calls in them.
        new_id: Makes the id of a call that brings none.

    Returns:
        The format, or None when no tools are on offer or the model has no way to call them.
    """
    if not tools:
        return None
    if reasoning is not None and reasoning.style is ReasoningStyle.CHANNELS:
        return ToolCallFormat("", "", lambda text: _channel_calls(text, new_id))
    parser, start = getattr(tokenizer, "tool_parser", None), getattr(tokenizer, "tool_call_start", None)
    if parser is None or not start:
        return None
    definitions = [json.loads(tool) for tool in tools]

    def parse(text: str) -> tuple[ToolCall, ...]:
        try:
            return _calls(parser(text, definitions), new_id)
        except _PARSER_FAULTS:
            return ()

    as_json = getattr(parser, "__module__", "").endswith(_JSON_PARSER)
    return ToolCallFormat(start, tokenizer.tool_call_end or "", parse, new_id if as_json else None)


def _calls(parsed: object, new_id: Callable[[], str]) -> tuple[ToolCall, ...]:
    """The calls a parser found.

    Raises:
        ValueError, TypeError: One of them is no call.
    """
    found = parsed if isinstance(parsed, list) else [parsed]
    return tuple(_call(each, new_id) for each in found)


def _call(found: object, new_id: Callable[[], str]) -> ToolCall:
    if not isinstance(found, Mapping):
        raise TypeError("a call is not an object")
    name, given_id = found.get("name"), found.get("id")
    if not isinstance(name, str) or not name:
        raise ValueError("a call has no name")
    arguments = found.get("arguments", found.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = json.loads(arguments or "{}")
    # The GLM parser, which never refuses, returns text that it cannot read under this name.
    if not isinstance(arguments, Mapping) or (name == "unknown" and list(arguments) == ["raw"]):
        raise ValueError("a call's arguments are not an object")
    text = json.dumps(dict(arguments), ensure_ascii=False, allow_nan=False)
    return ToolCall(name, text, given_id if isinstance(given_id, str) and given_id else new_id())


def _channel_calls(text: str, new_id: Callable[[], str]) -> tuple[ToolCall, ...]:
    """Read one message of a channelled answer: its header, ``<|message|>`` and its content."""
    header, _, content = text.partition("<|message|>")
    recipient = _CHANNEL_RECIPIENT.search(header)
    if recipient is None:
        return ()
    try:
        arguments = json.loads(content or "{}")
    except (ValueError, RecursionError):
        return ()
    if not isinstance(arguments, dict):
        return ()
    return (ToolCall(recipient[1], json.dumps(arguments, ensure_ascii=False), new_id()),)
