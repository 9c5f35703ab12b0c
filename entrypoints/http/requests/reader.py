"""Reads the body of a request: bounded, strictly, with every fault named at once."""

import json
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import attrs
import falcon

from mlxk.domain.errors import PayloadTooLargeError, UnsupportedMediaTypeError, ValidationError
from mlxk.entrypoints.http.requests import embeddings
from mlxk.entrypoints.http.requests.chat import ChatRequest
from mlxk.entrypoints.http.requests.completions import CompletionRequest, register_prompt
from mlxk.entrypoints.http.requests.converter import StrictConverter
from mlxk.entrypoints.http.requests.faults import Fault, raise_for
from mlxk.entrypoints.http.requests.messages import ReadSound, register_messages
from mlxk.entrypoints.http.requests.sampling import register_sampling
from mlxk.entrypoints.http.requests.support import (
    CHAT_UNSUPPORTED,
    COMPLETION_UNSUPPORTED,
    Unsupported,
    unsupported_faults,
)
from mlxk.entrypoints.http.requests.tools import register_tool_choice

MAX_DEPTH = 64
"""Arrays and objects inside each other."""

MAX_MARKS = 500_000
"""Commas and opening brackets in a body, those inside of strings included, so that they can be counted before it is
parsed: the parser lets nobody else run, and millions of small values take it seconds and a gigabyte."""


class Body(attrs.AttrsInstance, Protocol):
    """What every request class has."""

    def faults(self) -> list[Fault]:
        """Return what is wrong with combinations of fields."""


R = TypeVar("R", bound=Body)


class RequestReader:
    """Turns bodies into requests. Safe to share between threads.

    Args:
        sound: Decodes the sound in a message.
    """

    def __init__(self, sound: ReadSound) -> None:
        self.sound = sound
        self._converter = StrictConverter()
        register_sampling(self._converter)
        register_messages(self._converter)
        register_prompt(self._converter)
        embeddings.register_inputs(self._converter)
        register_tool_choice(self._converter)

    def chat(self, request: falcon.Request) -> tuple[ChatRequest, tuple[str, ...]]:
        """Return the chat request and the names of the fields nobody knows."""
        return self._read(read_object(request), ChatRequest, CHAT_UNSUPPORTED)

    def completion(self, request: falcon.Request) -> tuple[CompletionRequest, tuple[str, ...]]:
        """Return the completion request and the names of the fields nobody knows."""
        return self._read(read_object(request), CompletionRequest, COMPLETION_UNSUPPORTED)

    def embeddings(self, request: falcon.Request) -> tuple[embeddings.EmbeddingsRequest, tuple[str, ...]]:
        """Return the request for vectors and the names of the fields nobody knows."""
        return self._read(read_object(request), embeddings.EmbeddingsRequest, embeddings.UNSUPPORTED)

    def _read(
        self, body: Mapping[str, object], kind: type[R], table: Mapping[str, Unsupported]
    ) -> tuple[R, tuple[str, ...]]:
        refused = unsupported_faults(body, table)
        accepted = {name: value for name, value in body.items() if name not in {fault.path for fault in refused}}
        structured, faults = self._converter.structure(accepted, kind)
        combinations = [] if structured is None else structured.faults()
        raise_for([*faults, *combinations, *refused])
        if structured is None:
            raise ValidationError("The request is malformed.")
        known = {field.name for field in attrs.fields(kind)}
        return structured, tuple(name for name in body if name not in known and name not in table)


def read_object(request: falcon.Request) -> Mapping[str, object]:
    """Return the JSON object in the body of a request.

    Raises:
        UnsupportedMediaTypeError: The body is declared to be something else.
        PayloadTooLargeError: It is nested too deeply, or holds too many values.
        ValidationError: It is no JSON object.
    """
    declared = (request.content_type or "application/json").partition(";")[0].strip().lower()
    if declared != "application/json" and not declared.endswith("+json"):
        raise UnsupportedMediaTypeError("The body must be JSON.", hint="Send the header Content-Type: application/json")
    try:
        body = json.loads(_bounded(request.bounded_stream.read()), parse_constant=_no_constant)
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:  # JSON, its numbers, or its encoding; the error quotes nothing but we say less still
        raise ValidationError("The body is not valid JSON.") from error
    if not isinstance(body, dict):
        raise ValidationError("The body must be a JSON object.")
    _require_shallow(body)
    return body


def _bounded(data: bytes) -> bytes:
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > MAX_MARKS:
        raise PayloadTooLargeError(f"The body holds more than {MAX_MARKS} commas and opening brackets.")
    return data


def _no_constant(name: str) -> object:
    raise ValueError("NaN and Infinity are no JSON")


def _require_shallow(value: dict[str, Any]) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> PayloadTooLargeError:
    return PayloadTooLargeError(f"The body is nested deeper than {MAX_DEPTH} levels.")
