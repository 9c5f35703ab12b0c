"""A tool call written as JSON, followed while it is written.

    {"name": "get_weather", "arguments": {"city": "Paris"}}

Owns telling when the name is known and where the arguments end, so that these can be shown as they come. A call written
in any other way is for a parser to read, once it is whole.
"""

import json
import re

_OPENING = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)+")\s*,\s*"arguments"\s*:\s*(?=\{)')
_LONGEST_OPENING = 1024
"""Characters after which a text is not looked at any more when it has not begun as a call."""


class CallText:
    """One call."""

    def __init__(self) -> None:
        self.name: str | None = None
        """The function; None until its name and the beginning of the arguments were written."""
        self._opening = ""
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._ended = False

    def feed(self, text: str) -> str:
        """Take the next piece of the text and return what it holds of the arguments."""
        if self.name is not None:
            return self._arguments(text)
        if len(self._opening) > _LONGEST_OPENING:
            return ""
        self._opening += text
        found = _OPENING.match(self._opening)
        name = _string(found[1]) if found else None
        if found is None or name is None:
            return ""
        self.name = name
        return self._arguments(self._opening[found.end() :])

    def _arguments(self, text: str) -> str:
        """Return a text up to the end of the arguments."""
        if self._ended:
            return ""
        for place, character in enumerate(text, start=1):
            if self._in_string:
                self._in_string = self._escaped or character != '"'
                self._escaped = character == "\\" and not self._escaped
                continue
            self._in_string = character == '"'
            self._depth += (character in "{[") - (character in "}]")
            if self._depth == 0:
                self._ended = True
                return text[:place]
        return text


def _string(written: str) -> str | None:
    try:
        return str(json.loads(written))
    except ValueError:
        return None
