"""Calls whose arguments are written as JSON, followed while they are written.

    {"name": "get_weather", "arguments": {"city": "Paris"}}
    get_weather[ARGS]{"city": "Paris"}

Owns finding where the arguments begin and where they end, so that they can be shown as they come, unchanged.
"""

import re

from mlxk.domain.call_follower import LONGEST_OPENING, CallFollower, ToolCallParser, opened_by
from mlxk.domain.conversation import ToolCall

_KEY = re.compile(r'"arguments"\s*:\s*(?=\{)')
"""Stands before the arguments of a call that is JSON as a whole."""


class CallText(CallFollower):
    """The calls of one section.

    Args:
        parse: Reads a call.
        mark: Finds what stands between the name and the brace that begins the arguments.
        end: What a call needs after its arguments for the parser to read it.
    """

    def __init__(self, parse: ToolCallParser, mark: re.Pattern[str] = _KEY, end: str = "}") -> None:
        self.begun = False
        self._parse = parse
        self._mark = mark
        self._end = end
        self._opening = ""
        """What was written since the last arguments ended."""
        self._tried = 0
        """How much of it has been seen to be no opening, characters."""
        self._arguments: _JsonObject | None = None

    def feed(self, text: str) -> list[ToolCall]:
        """Take the next piece of the section and return what is decided by now."""
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
                rest = self._opening[found.end() :] + text[room:]
                self._opening, self._tried, self._arguments, self.begun = "", 0, _JsonObject(), True
                calls.append(call)
                return rest
        return ""


class _JsonObject:
    """The text of an object, from its first brace to the one that closes it."""

    def __init__(self) -> None:
        self.ended = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> int:
        """Return how many characters of the next piece belong to the object."""
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
