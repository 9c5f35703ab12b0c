"""Readers of tool calls with a tag for each argument. ``domain.formats.call_readers`` reads JSON and Python."""

import re
from typing import Any

import attrs

from mlxk.domain.formats.tool_arguments import LONGEST_OPENING, Call, NoCallError, Reader, Reading, Tools, named, typed
from mlxk.domain.formats.values import JSON, MAX_DEPTH, UnfinishedValueError, read_value


@attrs.frozen
class _Tags:
    """A syntax with a tag for each argument."""

    call: str
    """Pattern from the opening to the end of the function's name, which is the first group."""
    argument: str
    """Pattern of the start tag of an argument; its name is the first group."""
    argument_end: str
    """The end tag of an argument."""
    call_end: str
    """The end tag of a call."""
    newlines: bool = False
    """Whether to drop one line break at the start and one at the end of a value: they belong to the tags."""

    @property
    def _argument(self) -> re.Pattern[str]:
        return re.compile(self.argument)  # cached by re; compiled only in processes that read calls

    def read(self, text: str, tools: Tools, final: bool) -> Reading:
        """Read one call."""
        opening = re.match(self.call, text)
        if opening is None:
            raise UnfinishedValueError if len(text) < LONGEST_OPENING else NoCallError
        name = named(opening[1])
        if text[opening.end() :].lstrip().startswith("{"):
            value, end = read_value(text, opening.end(), JSON)
            return Reading((Call(name, tools.arguments(name, value)),), self._after(text, end) or end)
        arguments: dict[str, Any] = {}
        position = opening.end()
        while True:
            argument = self._argument.match(text, position)
            if argument is None:
                break
            value_end, position = self._value_end(text, argument.end(), final)
            value = text[argument.end() : value_end]
            arguments[argument[1].strip()] = self._typed(value, name, argument, tools)
        after = self._after(text, position)
        if after is not None:
            return Reading((Call(name, arguments),), after)
        if not final:
            raise UnfinishedValueError
        if text[position:].strip() and not arguments:
            raise NoCallError
        return Reading((Call(name, arguments),), position)

    def _after(self, text: str, position: int) -> int | None:
        """Return the position after the end of the call; None when it does not end here."""
        start = position + len(text[position:]) - len(text[position:].lstrip())
        return start + len(self.call_end) if text.startswith(self.call_end, start) else None

    def _typed(self, value: str, function: str, argument: re.Match[str], tools: Tools) -> Any:  # noqa: ANN401
        stated = argument.groupdict().get("type")
        types = tools.types(function, argument[1].strip())
        if stated in ("true", "string"):
            return self._trimmed(value)
        return typed(self._trimmed(value), types)

    def _trimmed(self, value: str) -> str:
        if not self.newlines:
            return value
        value = value.removeprefix("\n")
        return value.removesuffix("\n")

    def _value_end(self, text: str, start: int, final: bool) -> tuple[int, int]:
        """Return the end of a value, and the position after its end tag.

        An end tag counts only if the next argument or the end of the call follows, so that a value may contain the tag.
        """
        end = text.find(self.argument_end, start)
        while end >= 0:
            after = end + len(self.argument_end)
            if self._continues(text, after, final):
                return end, after
            end = text.find(self.argument_end, after)
        if not final:
            raise UnfinishedValueError
        return self._missing_end(text, start)

    def _continues(self, text: str, position: int, final: bool) -> bool:
        rest = text[position:].lstrip()
        if not rest:
            return final
        return rest.startswith(self.call_end) or self._argument.match(text, position) is not None

    def _missing_end(self, text: str, start: int) -> tuple[int, int]:
        """Return the end of a value whose end tag is missing: the next argument or the end of the call."""
        following = self._argument.search(text, start)
        call_end = text.find(self.call_end, start)
        ends = [end for end in (following.start() if following is not None else -1, call_end) if end >= 0]
        if not ends:
            raise NoCallError
        return min(ends), min(ends)


def _tags(opening: str, name_end: str, argument: str, argument_end: str, end: str, newlines: bool = False) -> Reader:
    call = rf"{opening}([^<>\"=\s][^<>\"\n]*?){name_end}"
    return _Tags(call, rf"\s*{argument}", argument_end, end, newlines).read


read_function_tags = _tags(
    "<function=", r"\s*>", r"<parameter=([^<>\n]+?)\s*>", "</parameter>", "</function>", newlines=True
)
read_invoke = _tags('<invoke name="', r'"\s*>', r'<parameter name="([^"\n]+)"\s*>', "</parameter>", "</invoke>")
read_dsml = _tags(
    '<｜DSML｜invoke name="',
    r'"\s*>',
    r'<｜DSML｜parameter name="([^"\n]+)"(?:\s+string="(?P<type>\w+)")?\s*>',
    "</｜DSML｜parameter>",
    "</｜DSML｜invoke>",
)
read_atem = _tags(
    '<atem:invoke name="', r'"\s*>', r'<atem:parameter name="([^"\n]+)"[^>\n]*>', "</atem:parameter>", "</atem:invoke>"
)
read_param = _tags('<function name="', r'"\s*>', r'<param name="([^"\n]+)"\s*>', "</param>", "</function>")


def key_value_reader(prefix: str) -> Reader:
    """Return a reader of calls with one tag for the name and one for the value of each argument (GLM)."""
    start, end = f"<{prefix}tool_call>", f"</{prefix}tool_call>"
    key, value = f"{prefix}arg_key", f"{prefix}arg_value"
    call = rf"{start}\s*([^<>{{}}\[\]\s]+)(?:\s*<tool_sep>)?(?=\s*<{key}>|\s*{end}|\s*\Z)"
    tags = _Tags(call, rf"\s*<{key}>((?s:.*?))</{key}>\s*<{value}>", f"</{value}>", end)

    def read(text: str, tools: Tools, final: bool) -> Reading:
        if re.match(rf"{start}\s*[{{\[]", text):
            raise NoCallError
        reading = tags.read(text, tools, final)
        # Otherwise any word between the tags would be a call without arguments.
        if not all(call.arguments or call.name in tools for call in reading.calls):
            raise NoCallError
        return reading

    return read


NAMESPACE = "]<]minimax[>["
"""The marker before each tag of MiniMax M3."""
_M3_CALL = re.compile(rf'(?:{re.escape(NAMESPACE)})?<invoke name="([^"\n]+)"\s*>')


def read_namespaced(text: str, tools: Tools, final: bool) -> Reading:
    """Read a call whose arguments are tags named after the parameters, each tag after a marker (MiniMax M3).

    Without markers all tags count; with them, a value may contain other tags.
    """
    if "</invoke>" not in text:
        raise UnfinishedValueError
    opening = _M3_CALL.match(text)
    if opening is None:
        raise NoCallError
    marker = NAMESPACE if text[opening.end() :].lstrip().startswith(NAMESPACE) else ""
    call_end = f"{marker}</invoke>"
    end = text.find(call_end, opening.end())
    if end < 0:
        raise UnfinishedValueError
    name = named(opening[1])
    entries, _ = _entries(text[:end], opening.end(), marker, 0)
    arguments = {
        key: typed(value, tools.types(name, key)) if isinstance(value, str) else value for key, value in entries
    }
    return Reading((Call(name, arguments),), end + len(call_end))


def _entries(text: str, position: int, marker: str, depth: int) -> tuple[list[tuple[str, Any]], int]:
    """Read the tags at a position, each with its name and value."""
    if depth > MAX_DEPTH:
        raise NoCallError
    start_tag = re.compile(rf"\s*{re.escape(marker)}<([^<>/\s]+)>")
    entries: list[tuple[str, Any]] = []
    while (tag := start_tag.match(text, position)) is not None:
        end = f"{marker}</{tag[1]}>"
        if text.find(end, tag.end()) < 0:
            break
        value, position = _nested(text, tag.end(), end, marker, depth + 1)
        entries.append((tag[1], value))
    return entries, position


def _nested(text: str, start: int, end: str, marker: str, depth: int) -> tuple[Any, int]:
    """Read the tags up to an end tag as an object, or as a list if all are ``item``; without tags it is text."""
    entries, position = _entries(text, start, marker, depth)
    close = text.find(end, position)
    if close < 0:
        raise NoCallError
    after = close + len(end)
    if not entries:
        return text[start:close], after
    if {name for name, _ in entries} == {"item"}:
        return [_untyped(value) for _, value in entries], after
    return {name: _untyped(value) for name, value in entries}, after


def _untyped(value: Any) -> Any:  # noqa: ANN401
    return typed(value, ()) if isinstance(value, str) else value


_K3_ARGUMENT = r'<\|open\|>argument key="([^"]*)"(?:\s+type="(?P<type>\w+)")?[^<]*<\|sep\|>'
_K3_JSON = re.compile(r"\s*<\|open\|>json[^<]*<\|sep\|>(.*?)<\|close\|>json<\|sep\|>", re.DOTALL)
_K3_CALL = r'<\|open\|>call tool="([^"]*)"[^<]*<\|sep\|>'
KIMI_K3_END = "<|close|>call<|sep|>"
_k3_tags = _Tags(_K3_CALL, rf"\s*{_K3_ARGUMENT}", "<|close|>argument<|sep|>", KIMI_K3_END)


def read_kimi_k3(text: str, tools: Tools, final: bool) -> Reading:
    """Read a call with typed arguments, one tag each, or with one JSON object (Kimi K3)."""
    opening = re.match(_K3_CALL, text)
    raw = _K3_JSON.match(text, opening.end()) if opening is not None else None
    if opening is None or raw is None:
        return _k3_tags.read(text, tools, final)
    name = named(opening[1])
    end = text.find(KIMI_K3_END, raw.end())
    if end < 0 and not final:
        raise UnfinishedValueError
    return Reading((Call(name, tools.arguments(name, raw[1])),), end + len(KIMI_K3_END) if end >= 0 else raw.end())
