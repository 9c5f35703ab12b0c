"""Reads JSON request bodies strictly, and reports all faults together.

Faults of a request that was translated for another API are reported under the field names that the client sent.
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
"""Deepest nesting of arrays and objects."""

MAX_MARKS = 500_000
"""Most commas and opening brackets in a body, those in strings included, since they are counted before parsing: the
parser holds the GIL, and millions of small values take seconds and a gigabyte."""


class RequestBody(attrs.AttrsInstance, Protocol):
    """The class of a request body."""

    def faults(self) -> list[FieldError]:
        """Return faults that concern several fields together."""


R = TypeVar("R", bound=RequestBody)


def _is_equal(value: object, other: object) -> bool:
    if isinstance(value, float) and isinstance(other, int) and not isinstance(other, bool):
        return value == other
    return type(value) is type(other) and value == other


def _with_written_name(fault: FieldError, written: Mapping[str, str]) -> FieldError:
    """Return a fault with the field name that the client sent in place of ours."""
    field = re.split(r"[.\[]", fault.path, maxsplit=1)[0]
    return attrs.evolve(fault, path=written[field] + fault.path[len(field) :]) if field in written else fault


class BodyReader(Generic[R]):
    """Reads one kind of request body. Thread-safe.

    Args:
        kind: The class of the body. Its ``aliases``, if any, map field names of other servers to ours; ours counts
            where both are sent.
        register: Functions that register the unions of that class with a converter.
        unsupported: Documented fields that are refused.
        without_effect: Documented fields that are accepted and reported as ignored, by path.
        neutral: By field, values that count as absent, as null does.
        default_model: Returns the model for requests without one, or None.
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
        for register_unions in register:
            register_unions(self._converter)

    def read(self, request: falcon.Request, response: falcon.Response) -> R:
        """Return the body of a request, and list its ignored fields in a header of the response.

        Raises:
            ValidationError, ParameterNotSupportedError: Fields are invalid or not supported; it names each.
            UnsupportedMediaTypeError, PayloadTooLargeError: See ``read_object``.
        """
        return self.structured(read_object(request), response)

    def structured(self, sent: Mapping[str, object], response: falcon.Response) -> R:
        """Structure a parsed body, and list its ignored fields in a header of the response.

        Raises:
            ValidationError, ParameterNotSupportedError: Fields are invalid or not supported; it names each.
        """
        written = {field: name for name, field in self._aliases.items() if name in sent and sent.get(field) is None}
        renamed = {**sent, **{field: sent[name] for field, name in written.items()}}
        body = {
            name: value
            for name, value in renamed.items()
            if name not in written.values() and not any(_is_equal(value, each) for each in self._neutral.get(name, ()))
        }
        if body.get("model") in (None, "") and (model := self._default_model()) is not None:
            body["model"] = model
        refused = unsupported_faults(body, self._unsupported)
        accepted = {name: value for name, value in body.items() if name not in {fault.path for fault in refused}}
        structured, faults = self._converter.structure(accepted, self._kind)
        combinations = [] if structured is None else structured.faults()
        raise_for([_with_written_name(fault, written) for fault in (*faults, *combinations, *refused)])
        if structured is None:
            raise ValidationError("The request is malformed.")
        report_ignored(response, ignored_fields(accepted, structured, self._unsupported, self._without_effect))
        return structured


IGNORED_FIELDS = "X-Mlxk-Ignored-Fields"
"""Response header that lists the paths of the request's ignored fields."""

MAX_IGNORED = 20
"""Most ignored fields in the header."""

_HEADER_SAFE = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")


def report_ignored(response: falcon.Response, names: Sequence[str]) -> None:
    """Append ignored fields of a request to the header of the response."""
    listed = [name for name in (response.get_header(IGNORED_FIELDS) or "").split(", ") if name]
    shown = [*listed, *(name if _HEADER_SAFE.fullmatch(name) else "?" for name in names)][:MAX_IGNORED]
    if shown:
        response.set_header(IGNORED_FIELDS, ", ".join(shown))


def read_fields(request: falcon.Request, *known: str) -> Mapping[str, object]:
    """Return the JSON object of a request whose body is optional, and may only have the fields ``known``.

    Raises:
        MlxkError: See ``read_object``; or another field is set.
    """
    body = read_object(request) if request.content_length else {}
    unknown = [key for key, value in body.items() if key not in known and value is not None]
    raise_for([FieldError(key, "is not known here") for key in unknown])
    return body


def read_object(request: falcon.Request) -> Mapping[str, object]:
    """Return the JSON object in the body of a request.

    Raises:
        UnsupportedMediaTypeError: The declared content type is not JSON.
        PayloadTooLargeError: The body is nested too deeply, or contains too many values.
        ValidationError: The body is not a JSON object, or contains invalid Unicode.
    """
    declared = (request.content_type or "application/json").partition(";")[0].strip().lower()
    is_json = declared == "application/json" or declared.endswith("+json")
    if not is_json and not (declared in _LOOSE_TYPES and not _is_from_browser(request)):
        raise UnsupportedMediaTypeError("The body must be JSON.", hint="Send the header Content-Type: application/json")
    try:
        data = request.bounded_stream.read()
        _require_few_values(data)
        text = data.decode(json.detect_encoding(data))  # strictly: the parser itself accepts surrogates
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
    """Return what is wrong in the JSON and where, without quoting the body."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg[:1].lower()}{error.msg[1:]} at line {error.lineno}, column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not {error.encoding.upper()}"
    return str(error) if isinstance(error, _ConstantError) else "a number in it has too many digits"


class _ConstantError(ValueError):
    """A constant of JavaScript that JSON does not have."""


_LOOSE_TYPES = frozenset({"application/x-www-form-urlencoded", "application/octet-stream", "text/json", "text/plain"})
"""Content types that clients such as curl declare for JSON by default."""

_BROWSER_HEADERS = ("Origin", "Referer", "Cookie", "Sec-Fetch-Site")


def _is_from_browser(request: falcon.Request) -> bool:
    """Whether a browser sent the request. A page may send a form of these types to any site without a preflight."""
    return any(request.get_header(name) is not None for name in _BROWSER_HEADERS)


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""An escaped surrogate: valid in a pair, invalid alone."""

_SHORT_NAME = re.compile(r"[A-Za-z0-9_$.-]{1,64}")
"""Field names that messages may repeat."""


def _surrogate_faults(value: object, path: str = "") -> Iterator[FieldError]:
    """Yield a fault for every string and field name that contains a lone surrogate."""
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


def _require_few_values(data: bytes) -> None:
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > MAX_MARKS:
        raise PayloadTooLargeError(f"The body holds more than {MAX_MARKS} commas and opening brackets.")


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
    """Maps fields of a chat request to the fields of the API whose request was translated into it."""

    names: Mapping[str, str] = MappingProxyType({})
    """Paths in the API by paths in the chat request. A path covers everything below it; the longest match counts."""

    def of(self, path: str) -> str:
        """Return the path in the API of a field of the chat request."""
        prefixes = [each for each in self.names if path == each or path.startswith((f"{each}.", f"{each}["))]
        if not prefixes:
            return path
        longest = max(prefixes, key=len)
        return self.names[longest] + path[len(longest) :]

    def translate(self, error: MlxkError) -> MlxkError:
        """Return an error with the API's field paths in place of those of the chat request."""
        problems = (error.detail or {}).get("problems")
        if not self.names or not isinstance(problems, list):
            return error
        translated = [{**each, "param": self.of(each["param"] or "") or None} for each in problems]
        message = "; ".join(
            f"{each['param']}: {each['message']}" if each["param"] else each["message"] for each in translated
        )
        return type(error)(message, hint=error.hint, detail={**(error.detail or {}), "problems": translated})

    def naming(self, work: Callable[[], Result]) -> Result:
        """Call ``work``, and translate the errors that it raises."""
        try:
            return work()
        except MlxkError as error:
            raise self.translate(error) from error


SAME_NAMES = FieldNames()
