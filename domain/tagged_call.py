"""Calls whose arguments stand in tags, followed while they are written.

    <function=get_weather><parameter=city>Paris</parameter><parameter=days>2</parameter></function>
    get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value>

Owns the order of the tags and putting the arguments together to one JSON object, each as soon as it is complete. What
type a value has is for the parser to say, which knows the tool's definition.
"""

import enum
import json

import attrs

from mlxk.domain.call_follower import LONGEST_OPENING, CallFollower, ToolCallParser, opened_by
from mlxk.domain.conversation import ToolCall
from mlxk.domain.marker_scanner import MarkerScanner

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


class TaggedCall(CallFollower):
    """The calls of one section.

    An argument that the parser does not read is given as the text it is. One that is written twice is given twice, and
    whoever reads the object takes the last, as the parser does. A call whose section ends in the middle of an argument
    keeps the arguments before it and is left open, so that nobody takes it for a whole one.

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
        """The opening or the argument at hand."""
        self._room = LONGEST_OPENING
        """Characters that the opening at hand may still have."""
        self._opening = ""
        """The opening of the call at hand."""
        self._given = False
        """Whether the call at hand has got an argument."""

    def feed(self, text: str) -> list[ToolCall]:
        """Take the next piece of the section and return what is decided by now."""
        calls: list[ToolCall] = []
        for piece in self._scanner.feed(text):
            self._take(piece.text, piece.marker, calls)
        return calls

    def close(self) -> list[ToolCall]:
        """End a call that nothing but the end of its section ends."""
        calls: list[ToolCall] = []
        for piece in self._scanner.flush():
            self._take(piece.text, piece.marker, calls)
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
        """Take a piece of an opening."""
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
        """Give an argument that is complete."""
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
