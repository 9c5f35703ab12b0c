"""Text in files that are not plain UTF-8: UTF-16 and UTF-32, and archives that hold text, unpacked within bounds."""

import bz2
import codecs
import contextlib
import functools
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

MOST_MEMBERS = 2000
"""Files of an archive that are read."""

MOST_LAYERS = 3
"""Archives inside archives."""

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_STREAMS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open))
_ZIP = b"PK\x03\x04"
_TAR, _TAR_AT = b"ustar", 257
_SHARE = 0.9
"""Share of the units of a text without a mark whose other half is zero: Latin letters in UTF-16."""

_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
)


def may_hold_text(beginning: bytes) -> bool:
    """Whether a file with zero bytes may hold text, by its first bytes."""
    packed = beginning.startswith((_ZIP, *(mark for mark, _ in _STREAMS)))
    return packed or _is_tar(beginning) or _wide_encoding(beginning) is not None


def text_of(content: bytes, limit: int, layers: int = MOST_LAYERS) -> str | None:
    """Return the text in a file's content, that of its members joined; None when it is binary.

    Args:
        content: The whole file.
        limit: Bytes that are unpacked at most; what comes after them is not read.
        layers: Archives inside archives that are opened.
    """
    unpacked = _unpacked(content, limit) if layers else None
    if unpacked is not None:
        return "\n".join(filter(None, (text_of(part, limit, layers - 1) for part in unpacked))) or None
    encoding = _wide_encoding(content[:8192])
    if encoding is not None:
        return content.decode(encoding, errors="replace")
    if _is_tar(content):
        content = content.replace(b"\0", b"\n")  # members follow one another, padded with zeros
    return None if b"\0" in content else content.decode("utf-8", errors="replace")


def _is_tar(content: bytes) -> bool:
    return content[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR


def _wide_encoding(beginning: bytes) -> str | None:
    """Return the encoding of a text with several bytes a character; None for any other content."""
    for mark, encoding in _MARKS:
        if beginning.startswith(mark):
            return encoding
    even, odd = beginning[::2], beginning[1::2]
    for zeros, letters, encoding in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if len(zeros) > 3 and zeros.count(0) >= _SHARE * len(zeros) and letters.count(0) <= (1 - _SHARE) * len(letters):
            return encoding
    return None


def _unpacked(content: bytes, limit: int) -> list[bytes] | None:
    """Return the contents of an archive, as far as it is sound; None when it is none."""
    if content.startswith(_ZIP):
        return list(_members(content, limit))
    for mark, opened in _STREAMS:
        if content.startswith(mark):
            return [_bounded(functools.partial(opened, io.BytesIO(content)), limit)]
    return None


def _members(content: bytes, limit: int) -> Iterator[bytes]:
    left = limit
    with contextlib.suppress(*_DAMAGED), zipfile.ZipFile(io.BytesIO(content)) as archive:
        for member in archive.infolist()[:MOST_MEMBERS]:
            part = _bounded(functools.partial(archive.open, member), left)
            left -= len(part)
            yield part
            if left <= 0:
                return


def _bounded(opened: Callable[[], Any], limit: int) -> bytes:
    """Return what can be read of a member, no more than a number of bytes."""
    parts: list[bytes] = []
    with contextlib.suppress(*_DAMAGED), opened() as file:
        while limit > 0 and (part := file.read1(min(limit, 65536))):
            parts.append(part)
            limit -= len(part)
    return b"".join(parts)
