"""Reads the body of a request: bounded, strictly, with every fault named at once."""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import attrs
import falcon

from mlxk.domain.errors import PayloadTooLargeError, UnsupportedMediaTypeError, ValidationError
from mlxk.entrypoints.http.requests.chat import ChatRequest
from mlxk.entrypoints.http.requests.completions import CompletionRequest, register_prompt
from mlxk.entrypoints.http.requests.converter import StrictConverter
from mlxk.entrypoints.http.requests.field_errors import MAX_REPORTED, FieldError, raise_for
from mlxk.entrypoints.http.requests.messages import ReadAudio, register_messages
from mlxk.entrypoints.http.requests.sampling import register_sampling
from mlxk.entrypoints.http.requests.support import (
    CHAT_UNSUPPORTED,
    COMPLETION_UNSUPPORTED,
    Unsupported,
    ignored_fields,
    unsupported_faults,
)
from mlxk.entrypoints.http.requests.tools import register_tool_choice

MAX_DEPTH = 64
"""Arrays and objects inside each other."""

MAX_MARKS = 500_000
"""Commas and opening brackets in a body, those inside of strings included, so that they can be counted before it is
parsed: the parser lets nobody else run, and millions of small values take it seconds and a gigabyte."""


class RequestBody(attrs.AttrsInstance, Protocol):
    """What every request class has."""

    def faults(self) -> list[FieldError]:
        """Return what is wrong with combinations of fields."""


R = TypeVar("R", bound=RequestBody)


class BodyReader:
    """Turns bodies into requests. Safe to share between threads.

    Args:
        teach: Teach a converter the unions of the requests' classes.
    """

    def __init__(self, *teach: Callable[[StrictConverter], None]) -> None:
        self._converter = StrictConverter()
        for each in teach:
            each(self._converter)

    def read(
        self, request: falcon.Request, kind: type[R], table: Mapping[str, Unsupported]
    ) -> tuple[R, tuple[str, ...]]:
        """Return a request and the fields of it that are ignored.

        Args:
            request: Whose body it is.
            kind: The class of the request.
            table: Documented fields that are not supported.

        Raises:
            ValidationError, ParameterNotSupportedError: Names every field at fault.
            UnsupportedMediaTypeError, PayloadTooLargeError: See ``read_object``.
        """
        body = read_object(request)
        refused = unsupported_faults(body, table)
        accepted = {name: value for name, value in body.items() if name not in {fault.path for fault in refused}}
        structured, faults = self._converter.structure(accepted, kind)
        combinations = [] if structured is None else structured.faults()
        raise_for([*faults, *combinations, *refused])
        if structured is None:
            raise ValidationError("The request is malformed.")
        return structured, ignored_fields(accepted, structured, table)


class RequestReader:
    """Reads what asks for text. Safe to share between threads.

    Args:
        sound: Decodes the sound in a message.
    """

    def __init__(self, sound: ReadAudio) -> None:
        self.sound = sound
        self._reader = BodyReader(register_sampling, register_messages, register_prompt, register_tool_choice)

    def chat(self, request: falcon.Request) -> tuple[ChatRequest, tuple[str, ...]]:
        """Return the chat request and the fields of it that are ignored."""
        return self._reader.read(request, ChatRequest, CHAT_UNSUPPORTED)

    def completion(self, request: falcon.Request) -> tuple[CompletionRequest, tuple[str, ...]]:
        """Return the completion request and the fields of it that are ignored."""
        return self._reader.read(request, CompletionRequest, COMPLETION_UNSUPPORTED)


def read_object(request: falcon.Request) -> Mapping[str, object]:
    """Return the JSON object in the body of a request.

    Raises:
        UnsupportedMediaTypeError: The body is declared to be something else.
        PayloadTooLargeError: It is nested too deeply, or holds too many values.
        ValidationError: It is no JSON object, or holds what is no Unicode text.
    """
    declared = (request.content_type or "application/json").partition(";")[0].strip().lower()
    if declared != "application/json" and not declared.endswith("+json"):
        raise UnsupportedMediaTypeError("The body must be JSON.", hint="Send the header Content-Type: application/json")
    try:
        text = _text(_bounded(request.bounded_stream.read()))
        body = json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:  # JSON, its numbers, or its encoding; the error quotes nothing but we say less still
        raise ValidationError("The body is not valid JSON.") from error
    if not isinstance(body, dict):
        raise ValidationError("The body must be a JSON object.")
    _require_shallow(body)
    if _SURROGATE.search(text):
        raise_for(list(itertools.islice(_broken_text(body), MAX_REPORTED)))
    return body


def _text(data: bytes) -> str:
    """Decode a body strictly, unlike the parser, which lets half characters pass."""
    return data.decode(json.detect_encoding(data))


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""One half of an escaped character beyond the first 65,536; such pairs are common, single halves are no text."""

_SHORT_NAME = re.compile(r"[A-Za-z0-9_$.-]{1,64}")
"""A client's name for a field, as messages may repeat it."""


def _broken_text(value: object, path: str = "") -> Iterator[FieldError]:
    """Yield a fault for every string and name that holds one half of a character without the other."""
    if isinstance(value, str):
        if not _whole(value):
            yield FieldError(path, "must not contain half a surrogate pair")
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _broken_text(each, f"{path}[{index}]")
    elif isinstance(value, dict):
        for name, each in value.items():
            if _whole(name):
                shown = name if _SHORT_NAME.fullmatch(name) else "?"
                yield from _broken_text(each, f"{path}.{shown}" if path else shown)
            else:
                yield FieldError(path, "must not have a name with half a surrogate pair")


def _whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
