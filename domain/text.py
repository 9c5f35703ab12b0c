"""Text: characters that act, valid Unicode, which known words are spelled like a typed one, and sizes as text."""

from collections.abc import Iterable

from mlxk.domain.errors import ValidationError

CONTROLS = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
"""Control characters, tab and line feed among them, and separators of lines: what stands in a class of a pattern."""

DIRECTIONS = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
"""Invisible characters that change the direction of what follows them: what stands in a class of a pattern."""

AT_MOST = 3
NEARLY = 0.12
"""A word stands beside the nearest one when its likeness, from 0 to 1, is smaller by less than this."""


def nearest(typed: str, known: Iterable[str]) -> list[str]:
    """Return the known words that are spelled like a typed one in any case, the nearest first; at most three."""
    import difflib  # noqa: PLC0415 - needed on failure only, and commands start faster without it

    word = typed.lower()
    names = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word, names, AT_MOST)
    likeness = {name: difflib.SequenceMatcher(None, name, word).ratio() for name in found}
    return [names[name] for name in found if likeness[name] > likeness[found[0]] - NEARLY]


def is_valid_unicode(text: str) -> bool:
    """Whether a text has no unpaired surrogate, which JSON and command lines can express."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_valid_unicode(text: str, field: str) -> None:
    """Refuse a text with an unpaired surrogate, which Python makes of bytes on the command line that are not UTF-8.

    Args:
        text: The text.
        field: Its name in the error message.

    Raises:
        ValidationError: It has an unpaired surrogate.
    """
    if not is_valid_unicode(text):
        fault = "is not UTF-8 text (or holds half a surrogate pair)"
        raise ValidationError.in_field(field, fault, hint="Convert it to UTF-8, for example with iconv.")


def in_one_unit(*sizes: int) -> tuple[str, ...]:
    """Return sizes as text that can be compared: in gigabytes where the largest has one, else in megabytes."""
    unit, size = ("GB", 1e9) if max(sizes) >= 1e9 else ("MB", 1e6)
    return tuple(f"{each / size:.{2 if unit == 'GB' else 1}f} {unit}" for each in sizes)
