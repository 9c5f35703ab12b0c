"""The protocol of the socket, for both sides: the check of the peer, frames, and domain values as JSON.

There is no key: the kernel tells that the socket's folder and the other process belong to this user. A frame is the
length of a JSON object, the number and lengths of its blobs (pixels and samples), the object and the blobs. Domain
values are written with the name of their class, and only the classes listed here are read, so that no message decides
which code runs.
"""

import enum
import json
import os
import socket
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

import mlxk
from mlxk.domain import embedding, errors
from mlxk.domain.errors import MlxkError, error_type_of
from mlxk.domain.generation import conversation, grammar, media, request, settings
from mlxk.domain.models import model

PROTOCOL = 1
"""Version of the protocol; programs with different versions do not use each other."""

MAX_JSON_BYTES = 64 * 2**20
MAX_BLOBS = 1024
MAX_BLOB_BYTES = 2**30
"""Limit of all blobs of a frame together: the pixels of five large images."""

_HEADER = struct.Struct(">II")
_LENGTH = struct.Struct(">Q")

Document = dict[str, Any]

_CLASSES: Mapping[str, type] = {
    each.__name__: each
    for each in (
        conversation.Adaptation,
        conversation.Conversation,
        conversation.Message,
        conversation.ToolCall,
        embedding.EmbeddingRequest,
        embedding.Embeddings,
        embedding.EmbeddingSettings,
        embedding.ImageInput,
        embedding.Truncation,
        errors.Advice,
        grammar.ForcedCall,
        grammar.Grammar,
        media.DecodedAudio,
        media.DecodedImage,
        media.DecodedVideo,
        media.VideoFrame,
        model.ModelHandle,
        request.Finished,
        request.GenerationRequest,
        request.PromptDelta,
        request.PromptProgress,
        request.ReasoningDelta,
        request.TextDelta,
        request.Timings,
        request.TokenAlternative,
        request.TokenLogprob,
        request.ToolCallDelta,
        request.Usage,
        settings.EngineOptions,
        settings.GenerationSettings,
    )
}
_ENUMS: Mapping[str, type[enum.Enum]] = {
    each.__name__: each
    for each in (
        conversation.Role,
        embedding.InputKind,
        errors.Remedy,
        grammar.GrammarKind,
        model.Origin,
        request.FinishReason,
        settings.Effort,
    )
}


class DisconnectedError(Exception):
    """The other process has closed the connection, or has written an invalid frame."""


class OversizeFrameError(DisconnectedError):
    """A frame exceeds the limits."""


@attrs.frozen
class Program:
    """Facts that must be equal on both sides, so that results do not depend on which one computes."""

    cache: str
    """Absolute path of the model cache."""
    workspaces: str | None
    """Absolute path of the workspace home."""
    variables: tuple[tuple[str, str], ...] = ()
    """Environment variables that change how models are computed, with their values, sorted."""
    cpu_dtype: str = "auto"
    """Setting of the type in which a CPU stores 16-bit weights."""
    blas: str = "auto"
    """Setting whether a BLAS library of the machine multiplies matrices."""

    def facts(self) -> Document:
        """Return the facts by their names in messages."""
        libraries = os.path.dirname(os.path.dirname(attrs.__file__))
        return {
            "version": mlxk.__version__,
            "installation": os.path.dirname(os.path.realpath(mlxk.__file__)),
            # Installing or removing a library changes the modification time.
            "libraries": f"{libraries}:{os.stat(libraries).st_mtime_ns}",
            "model cache": self.cache,
            "workspace folder": self.workspaces,
            "environment": dict(self.variables),
            "type of weights": self.cpu_dtype,
            "library for matrices": self.blas,
        }


def difference(facts: Document, others: object) -> str | None:
    """Return the name of the first fact that differs on the other side; None if all are equal."""
    known = others if isinstance(others, dict) else {}
    return next((name for name, value in facts.items() if known.get(name) != value), None)


def is_own_peer(connection: socket.socket) -> bool:
    """Whether the process at the other end runs as this user, according to the kernel."""
    try:
        if hasattr(socket, "SO_PEERCRED"):
            _, user, _ = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        else:  # LOCAL_PEERCRED of macOS: a version, then the user
            _, user = struct.unpack("=II", connection.getsockopt(0, 1, 76)[:8])
    except (OSError, struct.error):  # it has ended
        return False
    return bool(user == os.geteuid())


def send(connection: socket.socket, document: Document, blobs: Iterable[bytes] = ()) -> None:
    """Write a frame.

    Raises:
        OSError: The other process has ended.
        OversizeFrameError: The frame exceeds the limits; nothing is written.
    """
    text, parts = json.dumps(document).encode(), tuple(blobs)
    if len(text) > MAX_JSON_BYTES or len(parts) > MAX_BLOBS or sum(map(len, parts)) > MAX_BLOB_BYTES:
        raise OversizeFrameError
    lengths = b"".join(_LENGTH.pack(len(each)) for each in parts)
    connection.sendall(_HEADER.pack(len(text), len(parts)) + lengths + text)
    for each in parts:
        connection.sendall(each)


def receive(connection: socket.socket) -> tuple[Document, tuple[bytes, ...]]:
    """Read a frame.

    Raises:
        DisconnectedError: The connection is closed, or the frame is invalid.
        OSError: The connection failed, or its timeout has passed.
    """
    size, count = _HEADER.unpack(_read(connection, _HEADER.size))
    if size > MAX_JSON_BYTES or count > MAX_BLOBS:
        raise DisconnectedError
    lengths = [_LENGTH.unpack(_read(connection, _LENGTH.size))[0] for _ in range(count)]
    if sum(lengths) > MAX_BLOB_BYTES:
        raise DisconnectedError
    try:
        document = json.loads(_read(connection, size))
    except (ValueError, RecursionError):
        raise DisconnectedError from None
    if not isinstance(document, dict):
        raise DisconnectedError
    return document, tuple(bytes(_read(connection, length)) for length in lengths)


def _read(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view, filled = memoryview(data), 0
    while filled < size:
        count = connection.recv_into(view[filled:])
        if count == 0:
            raise DisconnectedError
        filled += count
    return data


def known_fields(kind: type, document: Mapping[str, Any]) -> Document:
    """Return the fields of a document that a class has; a newer version of the other program may send more."""
    return {each.name: document[each.name] for each in attrs.fields(kind) if each.name in document}


def encoded(value: Any, blobs: list[bytes]) -> Any:  # noqa: ANN401 - any value of the domain
    """Return a value as JSON; its bytes are appended to ``blobs``.

    Raises:
        TypeError: The class of a part is not listed.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, bytes):
        blobs.append(value)
        return ["blob", len(blobs) - 1]
    if isinstance(value, tuple | list):
        return ["tuple" if isinstance(value, tuple) else "list", [encoded(each, blobs) for each in value]]
    if isinstance(value, Mapping):
        return {name: encoded(each, blobs) for name, each in value.items()}
    kind = type(value).__name__
    if isinstance(value, enum.Enum) and kind in _ENUMS:
        return ["enum", kind, value.value]
    if kind not in _CLASSES:
        raise TypeError(f"values of {kind} do not cross the socket")
    fields = ((each.name, getattr(value, each.name)) for each in attrs.fields(type(value)))
    return ["value", kind, {name: encoded(each, blobs) for name, each in fields if not callable(each)}]


def decoded(document: Any, blobs: tuple[bytes, ...] = ()) -> Any:  # noqa: ANN401 - any value of the domain
    """Return the value that ``encoded`` has written as JSON.

    Raises:
        DisconnectedError: The document is no such value.
    """
    try:
        return _decoded(document, blobs)
    except _MALFORMED:
        raise DisconnectedError from None


def _decoded(document: Any, blobs: tuple[bytes, ...]) -> Any:  # noqa: ANN401 - any value of the domain
    if isinstance(document, dict):
        return {name: _decoded(each, blobs) for name, each in document.items()}
    if not isinstance(document, list):
        return document
    match document:
        case ["blob", int(index)]:
            return blobs[index]
        case ["tuple", list(items)]:
            return tuple(_decoded(each, blobs) for each in items)
        case ["list", list(items)]:
            return [_decoded(each, blobs) for each in items]
        case ["enum", str(kind), value]:
            return _ENUMS[kind](value)
        case ["value", str(kind), dict(fields)]:
            return _CLASSES[kind](**_decoded(known_fields(_CLASSES[kind], fields), blobs))
    raise ValueError


_MALFORMED = (ValueError, TypeError, LookupError, RecursionError, AttributeError)


def error_document(error: MlxkError) -> Document:
    """Return an error as JSON, with all fields of its message."""
    return {
        "code": error.code,
        "message": error.message,
        "hint": encoded(error.hint, []),
        "matches": list(error.matches),
        "detail": error.detail,
        "options": list(error.options),
        "fix": encoded(error.fix, []),
    }


def error_of(document: Any) -> MlxkError:  # noqa: ANN401 - any JSON value
    """Return the error that ``error_document`` has written as JSON.

    Raises:
        DisconnectedError: The document is no error.
    """
    try:
        return error_type_of(document["code"])(
            str(document["message"]),
            hint=_decoded(document["hint"], ()),
            matches=tuple(document["matches"]),
            detail=document["detail"],
            options=tuple(document["options"]),
            fix=_decoded(document["fix"], ()),
        )
    except _MALFORMED:
        raise DisconnectedError from None
