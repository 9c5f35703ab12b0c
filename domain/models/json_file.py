"""JSON documents of a model, read without trust.

Owns what counts as readable JSON: UTF-8 without a byte order mark, as the libraries that load the model read it. A
repeated key means its last value, as it does to them. Numbers no JSON writer may emit (NaN, infinities, floats beyond
the double range) become their own text, so that every value read here can be written as strict JSON again. What a
document must contain is decided by ``domain.models.integrity`` and ``domain.models.detection``.
"""

import json
import math

import attrs

MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
"""Longer JSON documents are refused; the largest honest ones, weight indexes, stay far below."""


@attrs.frozen
class Document:
    """One JSON document: its value, or why there is none."""

    value: object = None
    problem: str | None = None
    """What is wrong with it; empty when it is simply not JSON; None when it was read."""

    @property
    def valid(self) -> bool:
        """Whether it was read."""
        return self.problem is None

    @property
    def mapping(self) -> dict[str, object]:
        """The value when it is an object, else an empty one."""
        return self.value if isinstance(self.value, dict) else {}


ABSENT = Document(problem="missing")
"""A document that is not there."""

UNREADABLE = Document(problem="cannot be read")
"""A document that is there but that the file system would not give."""


def _finite(text: str) -> float | str:
    """Read a float, or keep the text of one that is out of range."""
    number = float(text)
    return number if math.isfinite(number) else text


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=str)


def read_document(data: bytes, limit: int = MAX_DOCUMENT_BYTES) -> Document:
    """Read a JSON document; whatever the bytes are, the answer is a document and never an exception.

    Args:
        data: The whole document, or at least one byte more than the limit.
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
