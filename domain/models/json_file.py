"""The JSON files of a model, parsed as untrusted input.

Readable means UTF-8 without a byte order mark, as for the libraries that load the model. The last value of a repeated
key counts, as it does there. Numbers that are not JSON (NaN, infinities, floats beyond the double range) become text,
so that every value can be written as strict JSON again.
"""

import json
import math

import attrs

MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
"""Bytes; longer JSON files are refused. The largest real ones, weight indexes, are far smaller."""


@attrs.frozen
class Document:
    """One JSON file: its value, or the reason why it has none."""

    value: object = None
    problem: str | None = None
    """What is wrong with it; empty when it is not JSON; None when it was parsed."""

    @property
    def valid(self) -> bool:
        """Whether it was parsed."""
        return self.problem is None

    @property
    def mapping(self) -> dict[str, object]:
        """The value when it is an object, else an empty one."""
        return self.value if isinstance(self.value, dict) else {}


ABSENT = Document(problem="missing")
"""A file that does not exist."""

UNREADABLE = Document(problem="cannot be read")
"""A file that exists and cannot be read."""


def _finite(text: str) -> float | str:
    """Parse a float; return the text of one that is out of range."""
    number = float(text)
    return number if math.isfinite(number) else text


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=str)


def read_document(data: bytes, limit: int = MAX_DOCUMENT_BYTES) -> Document:
    """Parse a JSON file. Never raises.

    Args:
        data: The complete file, or at least one byte more than the limit.
        limit: Bytes; a longer one is refused.
    """
    if len(data) > limit:
        return Document(problem=f"longer than {limit // 2**20} MiB")
    if data.startswith(b"\xef\xbb\xbf"):
        return Document(problem="starts with a byte order mark")
    try:
        return Document(_DECODER.decode(data.decode("utf-8")))
    except UnicodeDecodeError:
        return Document(problem="not UTF-8")
    except json.JSONDecodeError:
        return Document(problem="")
    except RecursionError:
        return Document(problem="nested too deeply")
    except ValueError:
        return Document(problem="contains a number that is too long")
