"""Reads text and JSON files that a command line names."""

import codecs
import json
import math
import os
import shlex
import stat
import sys
from typing import Any, NoReturn

from mlxk.domain.errors import StorageError, ValidationError


def read_text(path: str, flag: str, most_bytes: int, hint: str = "Save it as UTF-8 text.") -> str:
    """Return the text of a file or of a pipe, such as a shell's ``<(command)``.

    Args:
        path: As typed; ``~`` is the home directory.
        flag: The flag that it was given to, for error messages.
        most_bytes: The largest size that is read.
        hint: What to do about a file that is not UTF-8 text.

    Raises:
        StorageError: It cannot be read.
        ValidationError: It is not a file or pipe, too large, or not UTF-8 text.
    """
    try:
        with open(os.path.expanduser(path), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
                raise ValidationError(f"{flag}: '{path}' is no regular file")
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise StorageError(f"{flag}: '{path}' cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL among the characters
        raise ValidationError(f"{flag}: '{path}' cannot be the name of a file") from error
    if len(content) > most_bytes:
        raise ValidationError(f"{flag}: '{path}' is larger than {most_bytes // 1024**2} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            hint = f"It is UTF-16. Convert it: iconv -f UTF-16 -t UTF-8 {shlex.quote(path)}"
        raise ValidationError(f"{flag}: '{path}' is not UTF-8 text", hint=hint) from error


def piped_text(most_bytes: int) -> str:
    """Return the text of standard input, without a byte-order mark; bytes not in UTF-8 are replaced.

    Raises:
        ValidationError: It is larger.
    """
    content = sys.stdin.buffer.read(most_bytes + 1)
    if len(content) > most_bytes:
        size = f"{most_bytes // 1024**2} MiB" if most_bytes >= 1024**2 else f"{most_bytes // 1024} KiB"
        raise ValidationError(f"standard input is larger than {size}")
    return content.decode("utf-8-sig", errors="replace")


MAX_JSON_BYTES = 4 * 1024 * 1024
"""Larger files of JSON are refused."""


def read_json(path: str, flag: str, hint: str | None = None) -> Any:  # noqa: ANN401 - JSON
    """Return the document of a JSON file.

    Args:
        path: As in ``read_text``.
        flag: The flag that it was given to, for error messages.
        hint: What to do about invalid JSON.

    Raises:
        StorageError, ValidationError: See ``read_text``; or it is not JSON, or an object has a key twice.
    """
    return parsed_json(read_text(path, flag, MAX_JSON_BYTES), path, flag, hint)


def parsed_json(text: str, path: str, flag: str, hint: str | None = None) -> Any:  # noqa: ANN401 - JSON
    """Parse JSON; arguments and errors as in ``read_json``."""
    try:
        return strict_json(text)
    except RepeatedKeyError as error:
        fault = f"{flag}: '{path}' has the key {error} twice in one object"
        raise ValidationError(fault, hint=hint or "Remove one of the two.") from error
    except RecursionError as error:
        raise ValidationError(f"{flag}: '{path}' is nested too deeply", hint=hint) from error
    except ValueError as error:
        raise ValidationError(f"{flag}: '{path}' is not valid JSON: {error}", hint=hint) from error


def strict_json(text: str | bytes) -> Any:  # noqa: ANN401 - JSON
    """Parse JSON that any program reads the same way.

    Raises:
        RepeatedKeyError: An object has a key twice.
        NoNumberError: A number is NaN or infinite, or beyond all floats.
        ValueError, RecursionError: As for ``json.loads``.
    """
    return json.loads(text, object_pairs_hook=unique_keys, parse_constant=_refuse, parse_float=_finite)


class NoNumberError(ValueError):
    """A number that JSON does not have; the message is a sentence without its full stop."""


def _refuse(text: str) -> NoReturn:
    raise NoNumberError(f"{text[:_SHOWN]} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        _refuse(text)
    return number


class RepeatedKeyError(Exception):
    """An object has a key twice; the message is the key in quotation marks."""


def unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the object of key-value pairs, for ``json.loads``, which silently keeps the last of two equal keys.

    Raises:
        RepeatedKeyError: Two keys are equal.
    """
    document = dict(pairs)
    if len(document) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise RepeatedKeyError(json.dumps(repeated[:_SHOWN], ensure_ascii=False))
    return document


_SHOWN = 60
"""Characters of a key in an error."""
