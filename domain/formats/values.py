"""Parser of values as models write them: JSON with its usual flaws, and Python literals.

Reads one value at a position of a text, and tells a text that ends inside of the value from one that is no value.
"""

import json
import re
import sys
from typing import Any

import attrs

from mlxk.domain.text import with_valid_unicode

MAX_DEPTH = 128
"""Most levels of nested objects and lists."""


class UnfinishedValueError(Exception):
    """The text ends inside of the value; more text may complete it."""


class MalformedValueError(Exception):
    """The text is not a value in this notation."""


@attrs.frozen
class Notation:
    """A syntax of values."""

    quotes: tuple[str, ...] = ('"',)
    """Quotation marks of strings; strings in marks of several characters have no escapes."""
    words: bool = False
    """Whether keys and strings may lack quotes."""
    ends: tuple[str, ...] = ()
    """Markers that end the value even if closing brackets are missing before them."""
    nested_quotes: bool = False
    """Whether quotes inside a string may be unescaped: a quote ends the string only where a value can end."""


JSON = Notation()
PYTHON = Notation(quotes=('"""', "'''", '"', "'"), nested_quotes=True)

_LONGEST_END = 64
"""Most characters of a marker that ends a value."""

_BLANK = re.compile(r"\s*")
_NUMBER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d[\d_]*(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)")
_CONSTANTS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_WORD = re.compile(r"[^\W\d]\w*")
_BARE = re.compile(r"[^,{}\[\]:]+")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "/": "/", "\\": "\\", '"': '"', "'": "'", "\n": ""}
_HEX = re.compile("[0-9a-fA-F]+")
_HEX_LENGTHS = {"x": 2, "u": 4, "U": 8}
_CLOSING = {"{": "}", "[": "]", "(": ")"}
_AFTER_STRING = re.compile(
    r"\s*(?:[)\]}:]|,\s*(?:[^\W\d]\w*\s*=|[\"'\d\[{(-]|true|false|null|True|False|None|[)\]}])|\Z)"
)


def read_value(text: str, start: int, notation: Notation = JSON) -> tuple[Any, int]:
    """Read one value.

    Args:
        text: The text.
        start: Position of the value, or of white space before it.
        notation: The syntax.

    Returns:
        The value, made of dicts, lists, strings, numbers, booleans and None, and the position after it.

    Raises:
        UnfinishedValueError: The text ends inside of the value.
        MalformedValueError: The text is not a value.
    """
    if notation is JSON:
        try:
            return _DECODER.raw_decode(text, _BLANK.match(text, start).end())  # type: ignore[union-attr]
        except (ValueError, RecursionError):
            pass
    reader = _Reader(text, start, notation)
    return reader.value(0), reader.position


def _refuse_constant(name: str) -> Any:  # noqa: ANN401
    raise ValueError(name)


_DECODER = json.JSONDecoder(strict=False, parse_constant=_refuse_constant)


class _Reader:
    """Recursive-descent parser of one value; it reads each character once."""

    def __init__(self, text: str, position: int, notation: Notation) -> None:
        self.position = position
        self._text = text
        self._notation = notation

    def value(self, depth: int) -> Any:  # noqa: ANN401
        """Read the value at the position."""
        char = self._next()
        if char in "{[(":
            if depth >= MAX_DEPTH:
                raise MalformedValueError
            return self._container(char, depth)
        quote = self._quote()
        if quote is not None:
            return self._string(quote)
        number = _NUMBER.match(self._text, self.position)
        if number is not None and not self._notation.words:
            self.position = number.end()
            return _number(number[0])
        return self._word()

    def _next(self) -> str:
        """Skip white space and return the character at the position."""
        self._skip()
        if self.position >= len(self._text):
            raise UnfinishedValueError
        return self._text[self.position]

    def _skip(self) -> None:
        blank = _BLANK.match(self._text, self.position)
        self.position = blank.end() if blank is not None else self.position

    def _quote(self) -> str | None:
        return next((quote for quote in self._notation.quotes if self._text.startswith(quote, self.position)), None)

    def _container(self, opening: str, depth: int) -> Any:  # noqa: ANN401
        self.position += 1
        entries: dict[str, Any] = {}
        items: list[Any] = []
        while not self._closed(opening):
            item = self._key() if opening == "{" and self._notation.words else self.value(depth + 1)
            if opening == "{" and self._next() == ":":
                self.position += 1
                entries[item if isinstance(item, str) else json.dumps(item)] = self.value(depth + 1)
            else:
                items.append(item)
            if self._ended():
                break
            if self._next() == ",":
                self.position += 1
            elif self._text[self.position] != _CLOSING[opening]:
                raise MalformedValueError
        if opening == "{" and not items:
            return entries
        if entries:
            raise MalformedValueError
        return items

    def _closed(self, opening: str) -> bool:
        """Whether the container ends here; if so, skip its closing bracket."""
        if self._ended():
            return True
        if self._next() != _CLOSING[opening]:
            return False
        self.position += 1
        return True

    def _ended(self) -> bool:
        """Whether an end marker is here, which ends all open containers."""
        self._skip()
        ends = self._notation.ends
        if any(self._text.startswith(end, self.position) for end in ends):
            return True
        rest = self._text[self.position :] if len(self._text) - self.position < _LONGEST_END else ""
        if rest and any(end.startswith(rest) for end in ends):
            raise UnfinishedValueError
        return False

    def _key(self) -> str:
        self._next()
        quote = self._quote()
        if quote is not None:
            return self._string(quote)
        bare = _BARE.match(self._text, self.position)
        if bare is None:
            raise MalformedValueError
        self.position = bare.end()
        return bare[0].strip()

    def _string(self, quote: str) -> str:
        start = self.position + len(quote)
        if len(quote) > 1:
            end = self._text.find(quote, start)
            if end < 0:
                raise UnfinishedValueError
            self.position = end + len(quote)
            return self._text[start:end]
        parts: list[str] = []
        stops = re.compile(rf"[^\\{quote}]*")
        position = start
        while True:
            plain = stops.match(self._text, position)
            position = plain.end() if plain is not None else position
            parts.append(plain[0] if plain is not None else "")
            if position >= len(self._text):
                raise UnfinishedValueError
            if self._text[position] == "\\":
                escaped, position = self._escape(position + 1)
                parts.append(escaped)
            elif self._notation.nested_quotes and not _AFTER_STRING.match(self._text, position + 1):
                parts.append(quote)
                position += 1
            else:
                self.position = position + 1
                return with_valid_unicode("".join(parts))

    def _escape(self, position: int) -> tuple[str, int]:
        """Return the character of an escape sequence, after its backslash; an unknown sequence is kept unchanged."""
        if position >= len(self._text):
            raise UnfinishedValueError
        char = self._text[position]
        length = _HEX_LENGTHS.get(char)
        if length is not None:
            digits = self._text[position + 1 : position + 1 + length]
            if _HEX.fullmatch(digits) and int(digits, 16) <= sys.maxunicode:
                return chr(int(digits, 16)), position + 1 + length
            return f"\\{char}", position + 1
        return _ESCAPES.get(char, f"\\{char}"), position + 1

    def _word(self) -> Any:  # noqa: ANN401
        if self._notation.words:
            bare = _BARE.match(self._text, self.position)
            if bare is None:
                raise MalformedValueError
            self.position = bare.end()
            return _plain(bare[0].strip())
        word = _WORD.match(self._text, self.position)
        if word is None:
            raise MalformedValueError
        if word.end() == len(self._text):
            raise UnfinishedValueError
        if word[0] not in _CONSTANTS:
            raise MalformedValueError
        self.position = word.end()
        return _CONSTANTS[word[0]]


def _plain(text: str) -> Any:  # noqa: ANN401
    """Return an unquoted text as a constant or number, else as text."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    number = _NUMBER.fullmatch(text)
    return _number(text) if number is not None else text


def _number(text: str) -> Any:  # noqa: ANN401
    digits = text.replace("_", "")
    try:
        if "x" in digits.lower():
            return int(digits, 16)
        return int(digits) if digits.lstrip("-").isdecimal() else _finite(float(digits))
    except ValueError as error:
        raise MalformedValueError from error


def _finite(number: float) -> float:
    if number in (float("inf"), float("-inf")):
        raise MalformedValueError
    return number


_STRUCTURE = re.compile(r'[{}\[\]"\\]')


class Balance:
    """Finds the end of a JSON object or list in streamed text; it reads each character once."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped_at = -1
        self.read = 0
        """Characters read so far."""

    def feed(self, text: str) -> int | None:
        """Read the next chunk; return the position after the first value in all text so far, once it has ended."""
        base = self.read
        self.read += len(text)
        for match in _STRUCTURE.finditer(text):
            position, char = base + match.start(), match[0]
            if position == self._escaped_at:
                continue
            if char == "\\":
                self._escaped_at = position + 1 if self._in_string else -1
            elif char == '"':
                self._in_string = not self._in_string
            elif not self._in_string:
                self._depth += 1 if char in "{[" else -1
                if self._depth == 0:
                    return position + 1
        return None
