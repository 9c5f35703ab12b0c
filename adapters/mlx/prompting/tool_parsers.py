"""Parsing tool calls with mlx-lm's parsers, one for each family of models.

Selects the parser of a loaded tokenizer and the incremental parser for its notation, and converts the parser's results
and exceptions. The call sections of a stream are found by ``mlxk.domain.formats.tool_calls``, gpt-oss's channels by
``mlxk.domain.formats.output_parser``.
"""

import functools
import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlxk.domain.formats.reasoning import ReasoningFormat, ReasoningStyle
from mlxk.domain.formats.tool_call_stream import CallTags, CallText, IncrementalCallParser, TaggedCall, ToolCallParser
from mlxk.domain.formats.tool_calls import ToolCallFormat
from mlxk.domain.generation.conversation import ToolCall, is_valid_unicode

_PARSER_ERRORS = (
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
"""Raised by the parsers for text that is not a call; they use regular expressions and literals."""

_CHANNELS_MARKER = re.compile(r"<\|message\|>\s*(?=\{)")

_JSON_MARKERS = {
    # A section that begins with a bracket is a list of calls, whose strings may contain anything.
    "mistral": (re.compile(r"\A[^\[]*\[ARGS\]\s*(?=\{)"), ""),
    # The parser accepts Python literals as well, which need conversion and mostly begin differently.
    "kimi_k2": (re.compile(r'<\|tool_call_argument_begin\|>\s*(?=\{\s*["}])'), "<|tool_call_end|>"),
}
"""For families with JSON arguments: the marker before the arguments, and the text the parser needs after them."""

_TAGS = {
    "qwen3_coder": CallTags("<function=", ">", "<parameter=", ">", "</parameter>", "</function>"),
    "minimax_m2": CallTags("<invoke name=", ">", "<parameter name=", ">", "</parameter>", "</invoke>"),
    "muse_spark": CallTags("<atem:invoke", ">", "<atem:parameter", ">", "</atem:parameter>", "</atem:invoke>"),
    "minicpm5": CallTags("", ">", "<param", ">", "</param>", ""),
    "glm47": CallTags("", "<arg_key>", "<arg_key>", "<arg_value>", "</arg_value>", ""),
    "longcat": CallTags(
        "", "<longcat_arg_key>", "<longcat_arg_key>", "<longcat_arg_value>", "</longcat_arg_value>", ""
    ),
}
"""The notation of families with one tag an argument."""

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
    """Return a model's tool-call format.

    Args:
        tokenizer: mlx-lm's wrapper.
        tools: Function definitions, each a JSON object as text; some parsers take the types of arguments from them.
        reasoning: The model's reasoning format: one with channels has its calls in channels.
        new_id: Generates the id of a call without one.

    Returns:
        The format, or None without tools or when the model has no tool calls.
    """
    if not tools:
        return None
    if reasoning is not None and reasoning.style is ReasoningStyle.CHANNELS:
        return _channels(functools.partial(_channel_calls, new_id=new_id))
    parser, start = getattr(tokenizer, "tool_parser", None), getattr(tokenizer, "tool_call_start", None)
    if parser is None or not start:
        return None
    definitions = [json.loads(tool) for tool in tools]

    def parse(text: str) -> tuple[ToolCall, ...]:
        try:
            return _calls(parser(text, definitions), new_id)
        except _PARSER_ERRORS:
            return ()

    family = getattr(parser, "__module__", "").rpartition(".")[2]
    return ToolCallFormat(start, tokenizer.tool_call_end or "", parse, _incremental_parser(family, parse))


def _incremental_parser(family: str, parse: ToolCallParser) -> Callable[[], IncrementalCallParser] | None:
    """Return a factory of incremental parsers for a family; None when its calls are emitted only when complete."""
    if family == "json_tools":
        return lambda: CallText(parse)
    if family in _JSON_MARKERS:
        marker, end = _JSON_MARKERS[family]
        return lambda: CallText(parse, marker, end)
    if family in _TAGS:
        return lambda: TaggedCall(_TAGS[family], parse)
    return None


def _calls(parsed: object, new_id: Callable[[], str]) -> tuple[ToolCall, ...]:
    """Return the calls in a parser's result.

    Raises:
        ValueError, TypeError: One of them is not a call.
    """
    found = parsed if isinstance(parsed, list) else [parsed]
    return tuple(_call(each, new_id) for each in found)


def _call(found: object, new_id: Callable[[], str]) -> ToolCall:
    if not isinstance(found, Mapping):
        raise TypeError("a call is not an object")
    name, given_id = found.get("name"), found.get("id")
    if not isinstance(name, str) or not name or not is_valid_unicode(name):
        raise ValueError("a call has no name")
    arguments = found.get("arguments", found.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = json.loads(arguments or "{}")
    # The GLM parser never fails: it returns text that it cannot parse under this name.
    if not isinstance(arguments, Mapping) or (name == "unknown" and list(arguments) == ["raw"]):
        raise ValueError("a call's arguments are not an object")
    if not isinstance(given_id, str) or not given_id or not is_valid_unicode(given_id):
        given_id = new_id()
    return ToolCall(name, _object(arguments), given_id)


def _object(arguments: Mapping[str, object]) -> str:
    """Return arguments as JSON."""
    text = json.dumps(dict(arguments), ensure_ascii=False, allow_nan=False)
    return text if is_valid_unicode(text) else json.dumps(dict(arguments), allow_nan=False)


def _channels(parse: ToolCallParser) -> ToolCallFormat:
    return ToolCallFormat("", "", parse, lambda: CallText(parse, _CHANNELS_MARKER, ""))


def _channel_calls(text: str, new_id: Callable[[], str]) -> tuple[ToolCall, ...]:
    """Parse one message in a channel: its header, ``<|message|>`` and its content."""
    header, _, content = text.partition("<|message|>")
    recipient = _CHANNEL_RECIPIENT.search(header)
    if recipient is None:
        return ()
    try:
        return _calls({"name": recipient[1], "arguments": json.loads(content or "{}")}, new_id)
    except (ValueError, TypeError, RecursionError):
        return ()
