"""Incremental parsing of one tool call while it is generated, with arguments in JSON or in tags.

A parser here knows where a call begins, continues and ends. Names, ids and argument types are read by the parser of the
model family, which gets one opening or one argument at a time, so that every character is parsed once.
"""

import enum
import json
import re
from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol

import attrs

from mlxk.domain.formats.scanner import MarkerScanner
from mlxk.domain.generation.conversation import ToolCall

ToolCallParser = Callable[[str], tuple[ToolCall, ...]]
"""Reads the inside of one section; no calls at all means that it is malformed. Never raises."""

LONGEST_OPENING = 1024
"""Characters within which a call must begin; longer text without an opening is left to the parser."""


class IncrementalCallParser(Protocol):
    """Parses the calls of one section while it is generated.

    A call with a name and no arguments begins a call, one without a name continues it with the next chunk of its
    arguments. What was begun stays a call.
    """

    begun: bool
    """Whether a call has begun, so that the section cannot be text any more."""

    @abstractmethod
    def feed(self, text: str) -> list[ToolCall]:
        """Take the next chunk of the section and return the parts that are certain so far. Never raises."""

    @abstractmethod
    def close(self) -> list[ToolCall]:
        """Return the remaining deltas once the section has ended; a section that was cut is not closed."""


def opened_by(opening: str, parse: ToolCallParser) -> ToolCall | None:
    """Return the call that begins with an opening, which is completed here to a call without arguments.

    Args:
        opening: A complete call without arguments.
        parse: Reads it.

    Returns:
        The call's name and id; None when the parser sees anything else than one call without arguments.
    """
    calls = parse(opening)
    if len(calls) != 1 or calls[0].arguments != "{}":
        return None
    return ToolCall(calls[0].name, "", calls[0].id)


_KEY = re.compile(r'"arguments"\s*:\s*(?=\{)')
"""Precedes the arguments of a call that is one JSON object."""


class CallText(IncrementalCallParser):
    """The calls of one section.

    Args:
        parse: Reads a call.
        mark: Matches the text between the name and the brace that begins the arguments.
        end: What a call needs after its arguments for the parser to read it.
    """

    def __init__(self, parse: ToolCallParser, mark: re.Pattern[str] = _KEY, end: str = "}") -> None:
        self.begun = False
        self._parse = parse
        self._mark = mark
        self._end = end
        self._opening = ""
        """The text since the last arguments ended."""
        self._tried = 0
        """How much of it is known not to be an opening, characters."""
        self._arguments: _JsonObject | None = None

    def feed(self, text: str) -> list[ToolCall]:
        """Take the next chunk of the section and return the parts that are certain so far."""
        calls: list[ToolCall] = []
        while text:
            if self._arguments is None:
                text = self._open(text, calls)
                continue
            length = self._arguments.feed(text)
            calls.append(ToolCall("", text[:length]))
            text = text[length:]
            if self._arguments.ended:
                self._arguments = None
        return calls

    def close(self) -> list[ToolCall]:
        """Return nothing: arguments are complete as they are written, or they are not."""
        return []

    def _open(self, text: str, calls: list[ToolCall]) -> str:
        """Look for the opening of a call; return the text after it."""
        room = LONGEST_OPENING - len(self._opening)
        self._opening += text[:room]
        for found in self._mark.finditer(self._opening, self._tried):
            self._tried = found.end()
            call = opened_by(self._opening[: found.end()] + "{}" + self._end, self._parse)
            if call is not None:
                remainder = self._opening[found.end() :] + text[room:]
                self._opening, self._tried, self._arguments, self.begun = "", 0, _JsonObject(), True
                calls.append(call)
                return remainder
        return ""


class _JsonObject:
    """The text of an object, from its first brace to the one that closes it."""

    def __init__(self) -> None:
        self.ended = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> int:
        """Return how many characters of the next chunk belong to the object."""
        for place, character in enumerate(text, start=1):
            if self._in_string:
                self._in_string = self._escaped or character != '"'
                self._escaped = character == "\\" and not self._escaped
                continue
            self._in_string = character == '"'
            self._depth += (character in "{[") - (character in "}]")
            if self._depth == 0:
                self.ended = True
                return place
        return len(text)


_NOTHING = "{}"
"""The arguments of a call that has none."""


@attrs.frozen
class CallTags:
    """The tags of one notation, in the order in which they are written."""

    call: str
    """Begins a call, before its name; empty when the section does."""
    named: str
    """Follows the name; the same as ``argument`` when the first argument does."""
    argument: str
    """Begins an argument, before its name."""
    value: str
    """The last characters between an argument's name and its value."""
    argument_end: str
    """Follows the value."""
    end: str
    """Ends a call; empty when the end of the section does."""


class _Place(enum.Enum):
    OUTSIDE = enum.auto()
    OPENING = enum.auto()
    CALL = enum.auto()
    ARGUMENT = enum.auto()


class TaggedCall(IncrementalCallParser):
    """The calls of one section.

    An argument that the parser does not read is returned as text. An argument that occurs twice is returned twice;
    readers of the object use the last value, as the parser does. A call whose section ends within an argument keeps the
    arguments before it and its object stays open, so that it cannot be mistaken for a complete call.

    Args:
        tags: The notation.
        parse: Reads a call.
    """

    def __init__(self, tags: CallTags, parse: ToolCallParser) -> None:
        self.begun = False
        self._tags = tags
        self._parse = parse
        self._scanner = MarkerScanner(filter(None, {tags.call, tags.named, tags.argument, tags.argument_end, tags.end}))
        self._place = _Place.OUTSIDE if tags.call else _Place.OPENING
        self._written: list[str] = []
        """The current opening or argument."""
        self._room = LONGEST_OPENING
        """Characters that the current opening may still have."""
        self._opening = ""
        """The opening of the current call."""
        self._given = False
        """Whether the current call has an argument."""

    def feed(self, text: str) -> list[ToolCall]:
        """Take the next chunk of the section and return the parts that are certain so far."""
        calls: list[ToolCall] = []
        for chunk in self._scanner.feed(text):
            self._take(chunk.text, chunk.marker, calls)
        return calls

    def close(self) -> list[ToolCall]:
        """End a call that is ended only by the end of its section."""
        calls: list[ToolCall] = []
        for chunk in self._scanner.flush():
            self._take(chunk.text, chunk.marker, calls)
        if self._place is _Place.CALL:
            self._finish(calls)
        return calls

    def _take(self, text: str, marker: bool, calls: list[ToolCall]) -> None:
        tags = self._tags
        if self._place is _Place.OPENING:
            self._open(text, marker, calls)
        elif self._place is _Place.ARGUMENT:
            if marker and text == tags.argument_end:
                self._argue("".join(self._written), calls)
            else:
                self._written.append(text)
        elif self._place is _Place.CALL:
            if marker and text == tags.argument:
                self._place, self._written = _Place.ARGUMENT, []
            elif marker and text == tags.end:
                self._finish(calls)
        elif marker and text == tags.call:
            self._place, self._written, self._room = _Place.OPENING, [], LONGEST_OPENING

    def _open(self, text: str, marker: bool, calls: list[ToolCall]) -> None:
        """Take a chunk of an opening."""
        tags = self._tags
        if not marker:
            self._room -= len(text)
            if self._room >= 0:
                self._written.append(text)
            return
        self._place = _Place.OUTSIDE
        if text != tags.named or self._room < 0:
            self._take(text, marker, calls)
            return
        opening = tags.call + "".join(self._written)
        call = opened_by(opening + tags.named + tags.end, self._parse)
        if call is None:
            return
        calls.append(call)
        self.begun, self._given = True, False
        self._place, self._opening = _Place.CALL, opening
        if tags.named == tags.argument:
            self._take(text, marker, calls)
        else:
            self._opening += tags.named

    def _argue(self, written: str, calls: list[ToolCall]) -> None:
        """Return an argument that is complete."""
        argument = self._read(written)
        if argument == _NOTHING:
            name, _, value = written.partition(self._tags.value)
            names = json.loads(self._read(name + self._tags.value + "null")) or [name.strip()]
            argument = json.dumps(dict.fromkeys(names, value.strip()), ensure_ascii=False)
        calls.append(ToolCall("", (", " if self._given else "{") + argument[1:-1]))
        self._given, self._place = True, _Place.CALL

    def _read(self, written: str) -> str:
        """Return an object of one argument, as the parser reads it."""
        tags = self._tags
        calls = self._parse(self._opening + tags.argument + written + tags.argument_end + tags.end)
        return calls[0].arguments if len(calls) == 1 else _NOTHING

    def _finish(self, calls: list[ToolCall]) -> None:
        calls.append(ToolCall("", "}" if self._given else _NOTHING))
        self._place = _Place.OUTSIDE
