"""Request bodies of JSON, parsed strictly, every fault reported at once.

The faults of a translated request are reported under the names of the fields that the client wrote.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

import attrs
import falcon

from mlxk.domain.errors import MlxkError, PayloadTooLargeError, UnsupportedMediaTypeError, ValidationError
from mlxk.domain.text import is_valid_unicode
from mlxk.entrypoints.http.request_scope import trace_of
from mlxk.entrypoints.http.requests.validation import (
    MAX_REPORTED,
    FieldError,
    Neutral,
    StrictConverter,
    Unsupported,
    ignored_fields,
    raise_for,
    unsupported_faults,
)

Result = TypeVar("Result")

MAX_DEPTH = 64
"""Nesting of arrays and objects."""

MAX_MARKS = 500_000
"""Commas and opening brackets in a body, those inside of strings included, so that they can be counted before parsing:
the parser holds the GIL, and millions of small values cost it seconds and a gigabyte."""


class RequestBody(attrs.AttrsInstance, Protocol):
    """The class of a request body."""

    def faults(self) -> list[FieldError]:
        """Return the faults of combinations of fields."""


R = TypeVar("R", bound=RequestBody)


def _is_same(value: object, other: object) -> bool:
    if isinstance(value, float) and isinstance(other, int) and not isinstance(other, bool):
        return value == other
    return type(value) is type(other) and value == other


def _as_written(fault: FieldError, written: Mapping[str, str]) -> FieldError:
    """Return a fault of a field under the name by which the client sent it."""
    own = re.split(r"[.\[]", fault.path, maxsplit=1)[0]
    return attrs.evolve(fault, path=written[own] + fault.path[len(own) :]) if own in written else fault


class BodyReader(Generic[R]):
    """Reads one kind of request body. Safe to share between threads.

    Args:
        kind: The class of the body. Its ``aliases``, if any, are the names that other servers have for fields, each
            with the name here, which counts where both are sent.
        register: Registers the unions of that class with a converter.
        unsupported: Documented fields that are not supported.
        without_effect: Documented fields that are accepted and reported as ignored, by their paths.
        neutral: Values beside null with which a field asks for nothing.
        default_model: Returns the model of requests that name none; None for none.
    """

    def __init__(
        self,
        kind: type[R],
        register: Sequence[Callable[[StrictConverter], None]] = (),
        unsupported: Mapping[str, Unsupported] = MappingProxyType({}),
        without_effect: Mapping[str, Unsupported] = MappingProxyType({}),
        *,
        neutral: Neutral = MappingProxyType({}),
        default_model: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._kind = kind
        self._neutral = neutral
        self._aliases: Mapping[str, str] = getattr(kind, "aliases", {})
        self._default_model = default_model
        self._unsupported = unsupported
        self._without_effect = without_effect
        self._converter = StrictConverter()
        for each in register:
            each(self._converter)

    def read(self, request: falcon.Request, response: falcon.Response) -> R:
        """Return the body of a request, and list its ignored fields in a header of the response.

        Raises:
            ValidationError, ParameterNotSupportedError: Names every field at fault.
            UnsupportedMediaTypeError, PayloadTooLargeError: See ``read_object``.
        """
        return self.structured(read_object(request), response)

    def structured(self, sent: Mapping[str, object], response: falcon.Response) -> R:
        """Return a body that is read already, and list its ignored fields in a header of the response.

        Raises:
            ValidationError, ParameterNotSupportedError: Names every field at fault.
        """
        written = {own: name for name, own in self._aliases.items() if name in sent and sent.get(own) is None}
        named = {**sent, **{own: sent[name] for own, name in written.items()}}
        body = {
            name: value
            for name, value in named.items()
            if name not in written.values() and not any(_is_same(value, each) for each in self._neutral.get(name, ()))
        }
        if body.get("model") in (None, "") and (model := self._default_model()) is not None:
            body["model"] = model
        refused = unsupported_faults(body, self._unsupported)
        accepted = {name: value for name, value in body.items() if name not in {fault.path for fault in refused}}
        structured, faults = self._converter.structure(accepted, self._kind)
        combinations = [] if structured is None else structured.faults()
        raise_for([_as_written(fault, written) for fault in (*faults, *combinations, *refused)])
        if structured is None:
            raise ValidationError("The request is malformed.")
        report_ignored(response, ignored_fields(accepted, structured, self._unsupported, self._without_effect))
        return structured


IGNORED_FIELDS = "X-Mlxk-Ignored-Fields"
"""Response header: the ignored fields of the request, by their paths."""

MAX_IGNORED = 20
"""Ignored fields listed."""

_HEADER_SAFE = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")


def report_ignored(response: falcon.Response, names: Sequence[str]) -> None:
    """List ignored fields of a request in a header of the response, after those that are listed already."""
    listed = [name for name in (response.get_header(IGNORED_FIELDS) or "").split(", ") if name]
    shown = [*listed, *(name if _HEADER_SAFE.fullmatch(name) else "?" for name in names)][:MAX_IGNORED]
    if shown:
        response.set_header(IGNORED_FIELDS, ", ".join(shown))


def read_fields(request: falcon.Request, *known: str) -> Mapping[str, object]:
    """Return the JSON object of a request that needs none, and may have few fields.

    Raises:
        MlxkError: As ``read_object``; or a field is not one of ``known``.
    """
    body = read_object(request) if request.content_length else {}
    unknown = [key for key, value in body.items() if key not in known and value is not None]
    raise_for([FieldError(key, "is not known here") for key in unknown])
    return body


def read_object(request: falcon.Request) -> Mapping[str, object]:
    """Return the JSON object in the body of a request.

    Raises:
        UnsupportedMediaTypeError: The body is declared as another type.
        PayloadTooLargeError: It is nested too deeply, or contains too many values.
        ValidationError: It is not a JSON object, or contains invalid Unicode.
    """
    declared = (request.content_type or "application/json").partition(";")[0].strip().lower()
    is_json = declared == "application/json" or declared.endswith("+json")
    if not is_json and not (declared in _LOOSE_TYPES and not _is_from_browser(request)):
        raise UnsupportedMediaTypeError("The body must be JSON.", hint="Send the header Content-Type: application/json")
    try:
        text = _text(_bounded(request.bounded_stream.read()))
        body = json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:  # JSON, its numbers, or its encoding
        raise ValidationError(f"The body is not valid JSON: {_json_fault(error)}.") from error
    if not isinstance(body, dict):
        raise ValidationError("The body must be a JSON object.")
    _require_shallow(body)
    if _SURROGATE.search(text):
        raise_for(list(itertools.islice(_surrogate_faults(body), MAX_REPORTED)))
    trace_of(request).asks(body)
    return body


def _json_fault(error: ValueError) -> str:
    """Return what is wrong with JSON text and where, without quoting it."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg[:1].lower()}{error.msg[1:]} at line {error.lineno}, column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not {error.encoding.upper()}"
    return str(error) if isinstance(error, _ConstantError) else "a number in it has too many digits"


class _ConstantError(ValueError):
    """A constant that JavaScript has and JSON has not."""


_LOOSE_TYPES = frozenset({"application/x-www-form-urlencoded", "application/octet-stream", "text/json", "text/plain"})
"""Types that programs such as curl declare for JSON when nothing else was asked of them."""

_BROWSER_HEADERS = ("Origin", "Referer", "Cookie", "Sec-Fetch-Site")


def _is_from_browser(request: falcon.Request) -> bool:
    """Whether a browser sends the request; it may send any page's form in these types without asking first."""
    return any(request.get_header(name) is not None for name in _BROWSER_HEADERS)


def _text(data: bytes) -> str:
    """Decode a body strictly; the parser itself accepts surrogates."""
    return data.decode(json.detect_encoding(data))


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""An escaped surrogate; pairs are common, single ones are invalid."""

_SHORT_NAME = re.compile(r"[A-Za-z0-9_$.-]{1,64}")
"""Names of fields that messages may repeat."""


def _surrogate_faults(value: object, path: str = "") -> Iterator[FieldError]:
    """Yield a fault for every string and name that contains a single surrogate."""
    if isinstance(value, str):
        if not is_valid_unicode(value):
            yield FieldError(path, "must not contain half a surrogate pair")
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _surrogate_faults(each, f"{path}[{index}]")
    elif isinstance(value, dict):
        for name, each in value.items():
            if is_valid_unicode(name):
                shown = name if _SHORT_NAME.fullmatch(name) else "?"
                yield from _surrogate_faults(each, f"{path}.{shown}" if path else shown)
            else:
                yield FieldError(path, "must not have a name with half a surrogate pair")


def _bounded(data: bytes) -> bytes:
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > MAX_MARKS:
        raise PayloadTooLargeError(f"The body holds more than {MAX_MARKS} commas and opening brackets.")
    return data


def _no_constant(name: str) -> object:
    raise _ConstantError("NaN and Infinity are no JSON")


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


@attrs.frozen
class FieldNames:
    """The fields of an API whose requests become chat requests, by the paths of the chat request's fields."""

    names: Mapping[str, str] = MappingProxyType({})
    """Paths of the API by paths of the chat request; one covers everything below it, and the longest is taken."""

    def of(self, path: str) -> str:
        """Return the path of a field in the API."""
        begins = [each for each in self.names if path == each or path.startswith((f"{each}.", f"{each}["))]
        if not begins:
            return path
        longest = max(begins, key=len)
        return self.names[longest] + path[len(longest) :]

    def translate(self, error: MlxkError) -> MlxkError:
        """Return an error about fields of the chat request as one about fields of the API."""
        problems = (error.detail or {}).get("problems")
        if not self.names or not isinstance(problems, list):
            return error
        named = [{**each, "param": self.of(each["param"] or "") or None} for each in problems]
        message = "; ".join(
            f"{each['param']}: {each['message']}" if each["param"] else each["message"] for each in named
        )
        return type(error)(message, hint=error.hint, detail={**(error.detail or {}), "problems": named})

    def naming(self, work: Callable[[], Result]) -> Result:
        """Do something, and raise its errors as ones about fields of the API."""
        try:
            return work()
        except MlxkError as error:
            raise self.translate(error) from error


SAME_NAMES = FieldNames()
