"""Text: control characters, lines, valid Unicode, suggestions for misspelled words, and sizes as text."""

from collections.abc import Iterable

from mlxk.domain.errors import ValidationError

CONTROLS = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
"""Control characters (tab and line feed too) and line separators, for a character class of a regular expression."""

DIRECTIONS = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
"""Invisible characters that change the direction of text, for a character class of a regular expression."""

MAX_SUGGESTIONS = 3
SIMILARITY_MARGIN = 0.12
"""A word is suggested beside the best match when its similarity, from 0 to 1, is lower by less than this."""


def nearest(typed: str, known: Iterable[str]) -> list[str]:
    """Return the known words spelled most like a typed one, regardless of case; the best match first, at most three."""
    import difflib  # noqa: PLC0415 - needed on failure only, and commands start faster without it

    word = typed.lower()
    names = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(word, names, MAX_SUGGESTIONS)
    similarity = {name: difflib.SequenceMatcher(None, name, word).ratio() for name in matches}
    return [names[name] for name in matches if similarity[name] > similarity[matches[0]] - SIMILARITY_MARGIN]


def lines_of(text: str) -> list[str]:
    """Return the lines of a text without their ends, which are LF, CR LF and CR.

    ``str.splitlines`` also splits at form feeds, U+2028 and others, which editors and other programs show in a line.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def is_valid_unicode(text: str) -> bool:
    """Whether a text has no unpaired surrogate; JSON and command lines can contain them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def with_valid_unicode(text: str) -> str:
    """Join surrogate pairs that were written as two escapes, and replace unpaired surrogates with U+FFFD."""
    return text if is_valid_unicode(text) else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def require_valid_unicode(text: str, field: str) -> None:
    """Refuse a text with an unpaired surrogate; Python decodes bytes of the command line that are not UTF-8 so.

    Args:
        text: The text.
        field: Name of the field in the error message.

    Raises:
        ValidationError: The text has an unpaired surrogate.
    """
    if not is_valid_unicode(text):
        fault = "is not UTF-8 text (or holds half a surrogate pair)"
        raise ValidationError.in_field(field, fault, hint="Convert it to UTF-8, for example with iconv.")


def in_one_unit(*sizes: int) -> tuple[str, ...]:
    """Return sizes in bytes as text in a common unit: GB where the largest is at least one, else MB."""
    unit, divisor, decimals = ("GB", 1e9, 2) if max(sizes) >= 1e9 else ("MB", 1e6, 1)
    return tuple(f"{size / divisor:.{decimals}f} {unit}" for size in sizes)
