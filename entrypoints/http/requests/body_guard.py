"""Limits the size of request bodies, and undoes their content encoding, before a resource reads them."""

import io
import zlib
from collections.abc import Mapping
from typing import Any

import falcon

from mlxk.domain.errors import PayloadTooLargeError, UnsupportedMediaTypeError, ValidationError

ENCODINGS = "gzip, deflate"
"""Content encodings that request bodies may have; the header ``Accept-Encoding`` of a refusal."""

_WINDOWS = {"gzip": zlib.MAX_WBITS | 16, "x-gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
_RAW_DEFLATE = -zlib.MAX_WBITS

MAX_ENCODINGS = 2
"""Most content encodings of one body."""

MAX_MEMBERS = 4096
"""Most members of a gzip file; parallel compressors write one for every 64 KiB or more."""

_CHUNK = 2**16
"""Compressed bytes that are decoded at a time."""


class BodyGuard:
    """Refuses request bodies that are too large for their path, and decodes compressed ones.

    Args:
        limit_bytes: The operator's limit, both for the body as sent and decoded.
        larger: Limits in bytes, by path, for paths that take more.
    """

    def __init__(self, limit_bytes: int, larger: Mapping[str, int]) -> None:
        self._limit = limit_bytes
        self._larger = larger

    def process_request(self, request: falcon.Request, response: falcon.Response) -> None:
        """Check the length of the body, which the server has counted, and decode it.

        Raises:
            PayloadTooLargeError: The body is larger than the limit.
            UnsupportedMediaTypeError: A content encoding is unknown, or there are too many.
            ValidationError: The body is malformed in its declared encoding.
        """
        limit = self._larger.get(request.path.rstrip("/"), self._limit)
        if (request.content_length or 0) > limit:
            raise _too_large()
        declared = request.get_header("Content-Encoding") or ""
        encodings = [name for each in declared.split(",") if (name := each.strip().lower()) not in {"", "identity"}]
        if not encodings or not request.content_length:
            return
        unknown = [name for name in encodings if name not in _WINDOWS]
        if unknown or len(encodings) > MAX_ENCODINGS:
            response.set_header("Accept-Encoding", ENCODINGS)
            what = f"'{unknown[0]}'" if unknown and unknown[0].isascii() and len(unknown[0]) < 20 else "this"
            raise UnsupportedMediaTypeError(
                f"Content-Encoding: {what if unknown else 'several times over'} is not supported.",
                hint=f"Send the body as it is, or in one of: {ENCODINGS}.",
            )
        data = request.bounded_stream.read()
        for name in reversed(encodings):
            data = decoded(data, name, limit)
        request.env["wsgi.input"] = request.stream = io.BytesIO(data)
        request.env["CONTENT_LENGTH"] = str(len(data))
        request._bounded_stream = None  # Falcon's cache, built from these two


def decoded(data: bytes, encoding: str, limit: int) -> bytes:
    """Return a body without its content encoding.

    Args:
        data: The body.
        encoding: ``gzip``, ``x-gzip`` or ``deflate``, with or without the zlib header.
        limit: Most bytes of the result.

    Raises:
        PayloadTooLargeError: The result would be larger than ``limit``.
        ValidationError: The body is not in this encoding, is truncated, or has trailing data other than zero bytes
            after gzip.
    """
    window = _WINDOWS[encoding]
    if encoding == "deflate" and not _has_zlib_header(data):
        window = _RAW_DEFLATE
    parts: list[bytes] = []
    budget, offset, view = limit, 0, memoryview(data)
    members, most = 0, 1 if encoding == "deflate" else MAX_MEMBERS
    while offset < len(view):
        members += 1
        if members > most:
            raise _malformed(encoding)
        inflate: Any = zlib.decompressobj(window)
        # In chunks, since each call copies the input that it does not consume.
        while offset < len(view) and not inflate.eof:
            chunk = view[offset : offset + _CHUNK]
            try:
                parts.append(inflate.decompress(chunk, budget + 1))
            except zlib.error as error:
                raise _malformed(encoding) from error
            budget -= len(parts[-1])
            if budget < 0:
                raise _too_large()
            offset += len(chunk) - len(inflate.unused_data)
        if not inflate.eof:
            raise _malformed(encoding)
        if encoding != "deflate":
            offset = _after_padding(view, offset)
    return b"".join(parts)


def _after_padding(data: memoryview, offset: int) -> int:
    """Return the offset after zero bytes, with which programs fill the last block of a gzip file."""
    while offset < len(data) and data[offset] == 0:
        chunk = bytes(data[offset : offset + _CHUNK])
        offset += len(chunk) - len(chunk.lstrip(b"\0"))
    return offset


def _has_zlib_header(data: bytes) -> bool:
    return len(data) > 1 and data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0


def _too_large() -> PayloadTooLargeError:
    return PayloadTooLargeError("The request body is larger than the server takes.")


def _malformed(encoding: str) -> ValidationError:
    return ValidationError(
        f"The body is not what Content-Encoding: {encoding} says.", hint="Compress it whole, or leave out the header."
    )
