"""Readers of tool calls in JSON and Python: each reads the calls of one syntax at the start of a text.

``domain.formats.tag_readers`` reads arguments in tags; ``domain.formats.family_formats`` detects a model's syntaxes.
"""

import re
from collections.abc import Mapping
from typing import Any

from mlxk.domain.formats.tool_arguments import (
    LONGEST_OPENING,
    Call,
    NoCallError,
    Reader,
    Reading,
    Tools,
    mapping,
    named,
)
from mlxk.domain.formats.values import (
    JSON,
    PYTHON,
    MalformedValueError,
    Notation,
    UnfinishedValueError,
    read_value,
)
from mlxk.domain.text import is_valid_unicode

LONGEST_END = 64
"""Most characters after the arguments within which the end marker must be complete."""

_NAME_KEYS = ("name", "tool_name", "function", "tool", "function_name")
_ARGUMENT_KEYS = ("arguments", "parameters", "args", "input", "kwargs")
_ID_KEYS = ("id", "tool_call_id", "call_id")


def _call_of(value: object, tools: Tools) -> Call:
    """Return the call of a JSON object, with any of the usual keys for name, arguments and id."""
    entry = mapping(value)
    function = entry.get("function")
    if isinstance(function, Mapping):
        entry = {**entry, **function}
        entry.pop("function", None)
    key = next((key for key in _NAME_KEYS if isinstance(entry.get(key), str)), None)
    if key is None:
        if len(entry) == 1:
            ((name, arguments),) = entry.items()
            if name in tools and isinstance(arguments, Mapping):
                return Call(name, tools.arguments(name, arguments))
        raise NoCallError
    name = named(entry[key])
    given = next((entry[key] for key in _ARGUMENT_KEYS if key in entry), None)
    if given is None and not tools.takes_nothing(name) and not entry.keys() <= {*_NAME_KEYS, *_ID_KEYS, "type"}:
        raise NoCallError
    given_id = next((entry[key] for key in _ID_KEYS if isinstance(entry.get(key), str)), "")
    return Call(name, tools.arguments(name, given), given_id if is_valid_unicode(given_id) else "")


def _calls_of(value: object, tools: Tools) -> tuple[Call, ...]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise NoCallError
    return tuple(_call_of(item, tools) for item in values)


def _read_any(text: str, start: int, *notations: Notation) -> tuple[Any, int]:
    """Read a value in the first notation that accepts it."""
    for notation in notations[:-1]:
        try:
            return read_value(text, start, notation)
        except (MalformedValueError, UnfinishedValueError):
            continue
    return read_value(text, start, notations[-1])


def json_reader(opening: str, *ends: str) -> Reader:
    """Return a reader of JSON after an opening marker.

    Args:
        opening: The marker before the JSON value.
        ends: Markers that may follow the value; superfluous brackets before them are dropped.
    """
    stray = rf"[\s}}\]]*(?={'|'.join(map(re.escape, ends))})" if ends else ""
    notation = Notation(ends=ends) if ends else JSON
    lenient = Notation(('"""', '"', "'"), nested_quotes=True, ends=ends)

    def read(text: str, tools: Tools, final: bool) -> Reading:
        after = text.removeprefix(opening)
        start = len(text) - len(after.lstrip())
        if after == text or start == len(text):
            raise UnfinishedValueError
        if text[start] not in "{[":
            raise NoCallError
        value, end = _read_any(text, start, JSON, notation, lenient)
        calls = _calls_of(value, tools)
        trailing = re.compile(stray).match(text, end)
        return Reading(calls, trailing.end() if trailing is not None else end)

    return read


_FENCE_END = re.compile(r"\s*```")


def read_plain(text: str, tools: Tools, final: bool) -> Reading:
    """Read a JSON object, or a list of objects, whose names are functions on offer."""
    fence = re.match(r"```[\w-]*\s*", text)
    start = fence.end() if fence is not None else 0
    if start == len(text):
        raise UnfinishedValueError
    if text[start : start + 1] not in ("{", "["):
        raise NoCallError
    key = re.match(r"\[?\s*\{\s*\"([^\"\\]*)\"", text[start:])
    if key is None:
        raise UnfinishedValueError if re.fullmatch(r"\[?\s*(\{\s*(\"[^\"\\]*)?)?", text[start:]) else NoCallError
    if key[1] not in (*_NAME_KEYS, *_ARGUMENT_KEYS, *_ID_KEYS, "type") and key[1] not in tools:
        raise NoCallError
    value, end = read_value(text, start, JSON)
    calls = _calls_of(value, tools)
    if not all(call.name in tools for call in calls):
        raise NoCallError
    if fence is None:
        return Reading(calls, end)
    closing = _FENCE_END.match(text, end)
    if closing is None and not final:
        raise UnfinishedValueError
    return Reading(calls, closing.end() if closing is not None else end)


_PYTHON_NAME = re.compile(r"\s*([^\W\d][\w.\-]*)\s*\(")
_PYTHON_KEY = re.compile(r"\s*([^\W\d]\w*)\s*=(?!=)")
_PYTHON_WORD = re.compile(r"\s*[\w.\-]*\s*=?")
_PYTHON_SEPARATOR = re.compile(r"\s*[,;]?\s*")
_PYTHON_BLANKS = tuple(" \t\r\n,")
_JSON_LIST = re.compile(r"\[?\s*\{")


def _read_python(text: str, tools: Tools, final: bool) -> Reading:
    """Read ``[name(key=value, …), …]``, with or without the brackets."""
    if _JSON_LIST.match(text):
        value, end = read_value(text, 0, JSON)
        return Reading(_calls_of(value, tools), end)
    bracketed = text.lstrip().startswith("[")
    position = text.index("[") + 1 if bracketed else 0
    calls: list[Call] = []
    while (name := _PYTHON_NAME.match(text, position)) is not None:
        arguments, position = _python_arguments(text, name.end(), name[1], tools)
        calls.append(Call(named(name[1]), arguments))
        separator = _PYTHON_SEPARATOR.match(text, position)
        position = separator.end() if separator is not None else position
    if not calls:
        raise UnfinishedValueError if re.fullmatch(r"\s*\[?\s*[\w.\-]*\s*", text) else NoCallError
    if bracketed and text[position : position + 1] == "]":
        position += 1
    elif not final and _PYTHON_WORD.fullmatch(text, position):
        raise UnfinishedValueError
    return Reading(tuple(calls), position)


def _python_arguments(text: str, position: int, function: str, tools: Tools) -> tuple[Mapping[str, Any], int]:
    arguments: dict[str, Any] = {}
    while True:
        while text[position : position + 1] in _PYTHON_BLANKS:
            position += 1
        if position >= len(text):
            raise UnfinishedValueError
        if text[position] == ")":
            return tools.arguments(function, arguments), position + 1
        key = _PYTHON_KEY.match(text, position)
        if key is None:
            raise UnfinishedValueError if _PYTHON_WORD.fullmatch(text, position) else NoCallError
        arguments[key[1]], position = _python_value(text, key.end())


_VALUE_END = re.compile(r"\s*(?:[,)]|[^\W\d]\w*\s*=|\Z)")


def _python_value(text: str, start: int) -> tuple[Any, int]:
    """Read an argument; what only begins as a number or constant, such as a date, is a string without quotes."""
    try:
        value, end = read_value(text, start, PYTHON)
    except MalformedValueError:
        return _unquoted_string(text, start)
    if isinstance(value, (int, float, type(None))) and not _VALUE_END.match(text, end):
        return _unquoted_string(text, start)
    return value, end


_BARE_END = re.compile(r"\s*(?:,\s*[^\W\d]\w*\s*=|\)\s*(?:[\];]|,(?!\s*[^\W\d]\w*\s*=)|<\||\Z))")


def _unquoted_string(text: str, start: int) -> tuple[str, int]:
    """Read a string whose quotes the model left out, up to the next argument or the end of the call."""
    for position in range(start, len(text)):
        if text[position] in ",)" and _BARE_END.match(text, position):
            return text[start:position].strip(), position
    raise UnfinishedValueError


def python_reader(opening: str) -> Reader:
    """Return a reader of calls in Python after an opening marker."""

    def read(text: str, tools: Tools, final: bool) -> Reading:
        reading = _read_python(text[len(opening) :], tools, final)
        return Reading(reading.calls, reading.end + len(opening))

    return read


def read_bare_python(text: str, tools: Tools, final: bool) -> Reading:
    """Read a list of calls in Python without a marker before it; only functions on offer count."""
    if not re.match(r"\[\s*(?:[^\W\d][\w.\-]*\s*(?:\(|\Z)|\Z)", text):
        raise NoCallError
    name = re.match(r"\[\s*([^\W\d][\w.\-]*)\s*\(", text)
    if name is not None and name[1] not in tools:
        raise NoCallError
    return python_reader("")(text, tools, final)


_MISTRAL = re.compile(
    r"\[TOOL_CALLS\]\s*(?P<name>[^\s\[\]{}]+)?\s*(?:\[CALL_ID\]\s*(?P<id>[^\[\]{}\s]*))?\s*(?:\[ARGS\])?\s*"
)


def read_mistral(text: str, tools: Tools, final: bool) -> Reading:
    """Read ``[TOOL_CALLS]`` and a JSON list or object, or a name, an optional id and JSON arguments."""
    opening = _MISTRAL.match(text)
    if opening is None or opening.end() == len(text):
        raise UnfinishedValueError
    if text[opening.end()] not in "{[":
        raise NoCallError
    if any(marker.startswith(text[opening.end() :]) for marker in ("[ARGS]", "[CALL_ID]")):
        raise UnfinishedValueError
    value, end = read_value(text, opening.end(), JSON)
    if opening["name"] is None:
        return Reading(_calls_of(value, tools), end)
    name = named(opening["name"])
    return Reading((Call(name, tools.arguments(name, value), opening["id"] or ""),), end)


_HEADER_CALL = re.compile(
    r"(?P<opening><\|tool_call_begin\|>|<｜tool▁call▁begin｜>)\s*(?P<header>.*?)\s*"
    r"(?P<sep><\|tool_call_argument_begin\|>|<｜tool▁sep｜>)",
    re.DOTALL,
)
_KIMI_ID = re.compile(r"(?:functions\.)?(?P<name>[^\s:]+)(?P<index>:\d+)?")
_FENCED = re.compile(r"\s*(?P<name>[^\n]*)\n\s*```(?:json)?\s*")


def header_reader(end: str) -> Reader:
    """Return a reader of calls with a header, which has the name, before their JSON (Kimi K2, DeepSeek)."""

    def read(text: str, tools: Tools, final: bool) -> Reading:
        opening = _HEADER_CALL.match(text)
        if opening is None:
            raise UnfinishedValueError if len(text) < LONGEST_OPENING else NoCallError
        header, position, given_id = opening["header"], opening.end(), ""
        fenced = _FENCED.match(text, position)
        if opening["sep"].startswith("<|"):
            kimi_id = _KIMI_ID.fullmatch(header)
            if kimi_id is None or (kimi_id["index"] is None and kimi_id["name"] not in tools):
                raise NoCallError
            given_id, header = header, kimi_id["name"]
        elif fenced is not None and not fenced["name"].lstrip().startswith("{"):
            header, position = fenced["name"], fenced.end()
        elif not final and not text[position:].lstrip().startswith("{") and len(text) < LONGEST_OPENING:
            raise UnfinishedValueError
        value, value_end = read_value(text, position, Notation(ends=(end, "```")))
        closing = re.compile(rf"\s*(?:```)?\s*(?:{re.escape(end)})?").match(text, value_end)
        if not final and end not in text[value_end:] and len(text) < value_end + LONGEST_END:
            raise UnfinishedValueError
        name = named(header)
        call = Call(name, tools.arguments(name, value), given_id)
        return Reading((call,), closing.end() if closing is not None else value_end)

    return read


_SOLAR = re.compile(
    r"<\|tool_call:begin\|>(?P<id>[^<]*)<\|tool_call:name\|>(?P<name>[^<]*)<\|tool_call:args\|>", re.DOTALL
)


def read_solar(text: str, tools: Tools, final: bool) -> Reading:
    """Read a call with markers before its id, its name and its JSON (Solar Open)."""
    opening = _SOLAR.match(text)
    if opening is None:
        raise UnfinishedValueError if len(text) < LONGEST_OPENING else NoCallError
    value, end = read_value(text, opening.end(), Notation(ends=("<|tool_call:end|>",)))
    name = named(opening["name"])
    return Reading((Call(name, tools.arguments(name, value), opening["id"].strip()),), end)


_GEMMA_CALL = re.compile(r"(?:<\|tool_call>|<start_function_call>)\s*(?:call:)?\s*([^\s{}:]+(?::[^\s{}:]+)*)\s*(?=\{)")


def unquoted_reader(quote: str, end: str) -> Reader:
    """Return a reader of ``call:name{key:value}``, with unquoted keys and a marker as quotation mark (Gemma)."""
    notation = Notation(quotes=(quote, '"'), words=True, ends=(end,))

    def read(text: str, tools: Tools, final: bool) -> Reading:
        opening = _GEMMA_CALL.match(text)
        if opening is None:
            raise UnfinishedValueError if len(text) < LONGEST_OPENING else NoCallError
        value, position = read_value(text, opening.end(), notation)
        name = named(opening[1])
        return Reading((Call(name, tools.arguments(name, value or {})),), position)

    return read
