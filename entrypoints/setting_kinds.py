"""The kinds of values of settings: a description for messages, and a check."""

import json
import math
import re
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

import attrs

_MAX_SHOWN = 60
"""Characters of a wrong value that a message quotes."""
_MAX_NUMBER = 2**64 - 1
"""Largest number, such as a seed."""
_MAX_DEPTH = 32
"""Levels of nested tables and lists."""


@attrs.frozen
class Kind:
    """The type and range of a setting's value."""

    words: str
    """The valid values in words, such as "a whole number from 1"."""
    fault: Callable[[object], str | None]
    """Returns the predicate of an error sentence, such as "must be true or false (got 1)"; None for a valid value."""


def _of_type(words: str, fits: Callable[[object], bool]) -> Kind:
    return Kind(words, lambda value: None if fits(value) else f"must be {words} (got {_shown(value)})")


def _shown(value: object) -> str:
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except (ValueError, RecursionError):  # a number with too many digits, or too deep nesting
        return "…"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _is_word(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _is_path(value: object) -> bool:
    return _is_word(value) and str(value).startswith(("/", "~/"))


def is_web_address(text: str) -> bool:
    """Whether a text is an http or https address with a host."""
    try:
        parts = urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is not a number
        return False


def _is_words(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_word, value))


def _is_paths(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_path, value))


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) and each for each in value)


def _is_json_table(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and _is_json(value)


def _is_json(value: object, depth: int = 1) -> bool:
    """Whether a value of TOML has a form in JSON; dates and infinite numbers have none."""
    if isinstance(value, dict | list):
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        return depth <= _MAX_DEPTH and all(_is_json(part, depth + 1) for part in parts)
    if isinstance(value, int):
        return -_MAX_NUMBER <= value <= _MAX_NUMBER
    return value is None or isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))


def _number(words: str, types: tuple[type, ...], low: float, high: float | None) -> Kind:
    span = f"from {low} to {high}" if high is not None else f"from {low}"
    limit = _MAX_NUMBER if high is None else high

    def fault(value: object) -> str | None:
        infinite = isinstance(value, float) and not math.isfinite(value)
        if infinite or isinstance(value, bool) or not isinstance(value, int | float) or not isinstance(value, types):
            return f"must be {words} {span} (got {_shown(value)})"
        if low <= value <= limit:
            return None
        bounds = f"at least {low}" + (f" and at most {limit}" if high is not None or value > limit else "")
        return f"must be {bounds} (got {_shown(value)})"

    return Kind(f"{words} {span}", fault)


def whole(low: int, high: int | None = None) -> Kind:
    """Return the kind of whole numbers within bounds."""
    return _number("a whole number", (int,), low, high)


def number(low: float, high: float | None = None) -> Kind:
    """Return the kind of finite numbers within bounds."""
    return _number("a number", (int, float), low, high)


def one_of(*values: object) -> Kind:
    """Return the kind of a closed set of values."""
    return _of_type(
        "one of " + ", ".join(map(str, values)), lambda value: value in values and not isinstance(value, bool)
    )


SWITCH = _of_type("true or false", lambda value: isinstance(value, bool))
WORD = _of_type("a text of one line", _is_word)
TEXT = _of_type("a text", lambda value: isinstance(value, str) and bool(value))
PATH = _of_type("a path that begins with / or ~/", _is_path)
PATHS = _of_type("a list of paths that begin with / or ~/", _is_paths)
ADDRESS = _of_type("an http or https address", lambda value: _is_word(value) and is_web_address(str(value)))
WORDS = _of_type("a list of texts of one line", _is_words)
TEXTS = _of_type("a list of texts", _is_texts)
JSON_TABLE = _of_type("a table of JSON values", _is_json_table)


_ORIGIN = re.compile(
    r"\*|null|(?!https?:///?$)[A-Za-z][A-Za-z0-9+.-]*://(?:(?:\*(?:\.[^\s/:@?#*]+)?|[^\s/:@?#*]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?)?/?"
)
"""Matches an origin or a pattern of origins; those of some desktop apps have no host."""

_HOST_NAME = re.compile(r"[^\s/:@?#*\[\]]+")


def is_origin(text: str) -> bool:
    """Whether a text is an origin of web pages, or a pattern of origins."""
    return _ORIGIN.fullmatch(text) is not None


def is_host_name(text: str) -> bool:
    """Whether a text is the name of a host, without scheme, port and wildcard."""
    return _HOST_NAME.fullmatch(text) is not None


def is_switched_on(variables: Mapping[str, str], name: str) -> bool:
    """Whether a variable is set to a word for yes."""
    return variables.get(name, "").strip().lower() in {"1", "true", "yes", "on"}


def is_switched_off(variables: Mapping[str, str], name: str) -> bool:
    """Whether a variable is set to a word for no."""
    return variables.get(name, "").strip().lower() in {"0", "false", "no", "off"}
