"""Validates request bodies: strict conversion into attrs classes, field errors, and fields that are not supported.

Values are not coerced. All faults of a request are reported together, each with the path of its field.
"""

import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, get_args, get_origin

import attrs
from cattrs import Converter
from cattrs.cols import list_structure_factory
from cattrs.errors import AttributeValidationNote, BaseValidationError, IterableValidationNote
from cattrs.gen import make_dict_structure_fn

from mlxk.domain.errors import MlxkError, ParameterNotSupportedError, ValidationError

Failure = TypeVar("Failure", bound=MlxkError)

MAX_REPORTED = 20
"""Most faults in one error."""

Neutral = Mapping[str, tuple[object, ...]]
"""By field, values that count as absent, such as -1 for no limit."""


@attrs.frozen
class FieldError:
    """One fault of a request."""

    path: str
    """Path of the field, such as ``messages[0].content``; empty for the whole body."""
    message: str
    """The fault, without the field's name and value."""
    unsupported: bool = False
    """Whether the value is valid, but not supported."""


def raise_for(faults: Sequence[FieldError], unsupported: type[MlxkError] = ParameterNotSupportedError) -> None:
    """Raise the faults as one error; does nothing without faults.

    Args:
        faults: The faults.
        unsupported: The error if every value is valid, but some are not supported.

    Raises:
        ParameterNotSupportedError: Some values are not supported; another class if ``unsupported`` is given.
        ValidationError: Some values are invalid.
    """
    if not faults:
        return
    kind = unsupported if all(fault.unsupported for fault in faults) else ValidationError
    ordered = sorted(faults, key=lambda fault: fault.unsupported)[:MAX_REPORTED]
    message = "; ".join(f"{fault.path}: {fault.message}" if fault.path else fault.message for fault in ordered)
    problems = [{"param": fault.path or None, "message": fault.message} for fault in ordered]
    raise kind(message, detail={"problems": problems})


def located(error: Failure, path: str, names: Mapping[str, str] = MappingProxyType({})) -> Failure:
    """Return an error with the path of the field that it is about.

    Args:
        error: An error from code that does not know the fields of the request.
        path: The field, for an error that names none.
        names: Fields of the request, by the names in such errors; an error with another name is returned unchanged.
    """
    problems = (error.detail or {}).get("problems")
    if not isinstance(problems, list):
        return type(error).in_field(path, error.message, hint=error.hint)
    first = problems[0]
    if first["param"] not in names:
        return error
    return type(error).in_field(names[first["param"]], first["message"], hint=error.hint)


@attrs.frozen
class Unsupported:
    """A documented field that is not supported."""

    reason: str
    """Text for the error message, without the field's name."""
    neutral: tuple[object, ...] = ()
    """Values besides null that are accepted, since they ask for nothing."""

    def refuses(self, value: object) -> bool:
        """Whether a value is refused."""
        return value is not None and not any(value == each and type(value) is type(each) for each in self.neutral)


def unsupported_faults(body: Mapping[str, object], table: Mapping[str, Unsupported]) -> tuple[FieldError, ...]:
    """Return a fault for every field of a body whose value is not supported."""
    return tuple(
        FieldError(name, f"is not supported: {table[name].reason}", unsupported=True)
        for name, value in body.items()
        if name in table and table[name].refuses(value)
    )


def ignored_fields(
    body: object, request: object, unsupported: Mapping[str, Unsupported], without_effect: Mapping[str, Unsupported]
) -> tuple[str, ...]:
    """Return the accepted fields of a body that have no effect, without duplicates.

    Args:
        body: The JSON body.
        request: The body as an attrs object.
        unsupported: Fields whose support was checked already.
        without_effect: Fields that have no effect, by path; their neutral values are not reported.

    Returns:
        Paths without indices, such as ``messages[].name``.
    """
    fields = dict.fromkeys(_ignored(body, request, "", without_effect))
    return tuple(name for name in fields if name not in unsupported)


def _ignored(value: object, structured: object, path: str, without_effect: Mapping[str, Unsupported]) -> Iterator[str]:
    if isinstance(value, list) and isinstance(structured, list):
        for each, structured_each in zip(value, structured, strict=True):
            if isinstance(each, dict):
                yield from _ignored(each, structured_each, f"{path}[].", without_effect)
    kind = type(structured)
    if isinstance(value, dict) and attrs.has(kind):
        names = {field.name for field in attrs.fields(kind)}
        for name, each in value.items():
            field_path = path + name
            if each is None:
                continue
            rule = without_effect.get(field_path)
            if name not in names if rule is None else rule.refuses(each):
                yield field_path
            elif name in names and isinstance(each, (list, dict)):
                inner = f"{field_path}{'.' if isinstance(each, dict) else ''}"
                yield from _ignored(each, getattr(structured, name), inner, without_effect)


T = TypeVar("T")
Hook = Callable[[object, object], object]

_SHOWN_BELOW = 1e12
"""Messages repeat only numbers below this."""

MAX_FAULTS = 100
"""Most faults collected from one body."""


@attrs.frozen
class Range:
    """Bounds of a number, or of the length of a string or list; None is no bound."""

    low: float | None = None
    high: float | None = None

    def fault(self, value: object) -> str | None:
        """Return the fault of a value, or None."""
        if isinstance(value, (str, list, dict)):
            noun = "characters" if isinstance(value, str) else "entries"
            return self._outside(len(value), f" {noun}", "have ")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return self._outside(value, "", "be ")
        return None

    def _outside(self, value: float, unit: str, verb: str) -> str | None:
        got = f" (got {_plain(value)})" if abs(value) < _SHOWN_BELOW else ""
        if self.low is not None and value < self.low:
            return f"must {verb}at least {_plain(self.low)}{unit}{got}"
        if self.high is not None and value > self.high:
            return f"must {verb}at most {_plain(self.high)}{unit}{got}"
        return None


@attrs.frozen
class OneOf:
    """A closed set of strings."""

    values: tuple[str, ...]

    def fault(self, value: object) -> str | None:
        """Return the fault of a value, or None."""
        return None if value in self.values else f"must be one of {', '.join(self.values)}"


Bound = Range | OneOf


class StrictConverter:
    """Converts JSON values into attrs classes, without coercion."""

    def __init__(self) -> None:
        self.cattrs = Converter(detailed_validation=True)
        self._unions: list[object] = []
        for kind, hook in _SCALARS.items():
            self.cattrs.register_structure_hook(kind, hook)
        self.cattrs.register_structure_hook_factory(attrs.has, self._object_hook)
        self.cattrs.register_structure_hook_factory(lambda kind: _origin(kind) is list, self._list_hook)
        self.cattrs.register_structure_hook_factory(lambda kind: _origin(kind) is dict, self._dict_hook)
        self.cattrs.register_structure_hook_factory(_is_bounded, self._bounded_hook)

    def union(self, kind: object, choose: Callable[[object], object]) -> None:
        """Register how the member of a union is chosen for a value.

        Args:
            kind: The union, exactly as a field declares it.
            choose: Returns the member for a JSON value; raises ``TypeError`` or ``ValueError`` with the fault.
        """
        if kind in self._unions:  # unions are equal in any order of their members, and one rule would hide the other
            raise ValueError(f"{kind} has a rule already")
        self._unions.append(kind)
        optional = type(None) in get_args(kind)

        def hook(value: object, _: object) -> object:
            if value is None and optional:
                return None
            return self.cattrs.structure(value, typing.cast("type[object]", choose(value)))

        self.cattrs.register_structure_hook_func(lambda other: other == kind, hook)

    def structure(self, value: object, kind: type[T]) -> tuple[T | None, tuple[FieldError, ...]]:
        """Return the converted value, or None and the faults."""
        try:
            return self.cattrs.structure(value, kind), ()
        except BaseValidationError as error:
            return None, tuple(fault for fault, _ in zip(_walk(error), range(MAX_FAULTS), strict=False))
        except (TypeError, ValueError) as error:
            return None, (FieldError("", str(error)),)

    def _object_hook(self, kind: type[Any]) -> Hook:
        structure = make_dict_structure_fn(kind, self.cattrs, _cattrs_detailed_validation=True)

        def hook(value: object, _: object) -> object:
            if not isinstance(value, dict):
                raise TypeError(_expected("an object", value))
            return structure(value, kind)

        return hook

    def _list_hook(self, kind: type[Any]) -> Hook:
        structure = list_structure_factory(kind, self.cattrs)

        def hook(value: object, _: object) -> object:
            if not isinstance(value, list):
                raise TypeError(_expected("an array", value))
            return structure(value, kind)

        return hook

    def _dict_hook(self, kind: type[Any]) -> Hook:
        _, entry = get_args(kind)
        structure = self.cattrs.get_structure_hook(entry)

        def hook(value: object, _: object) -> object:
            if not isinstance(value, dict):
                raise TypeError(_expected("an object", value))
            try:
                return {key: structure(each, entry) for key, each in value.items()}
            except (TypeError, ValueError) as error:
                raise ValueError(f"each entry {error}") from error

        return hook

    def _bounded_hook(self, kind: type[Any]) -> Hook:
        inner, *marks = get_args(kind)
        bounds = [mark for mark in marks if isinstance(mark, Bound)]
        structure = self.cattrs.get_structure_hook(inner)

        def hook(value: object, _: object) -> object:
            fault = next((fault for bound in bounds if (fault := bound.fault(value))), None)
            if fault is not None and isinstance(value, (list, dict)):
                raise ValueError(fault)  # before a million entries are converted
            structured: object = structure(value, inner)
            if fault is not None:
                raise ValueError(fault)
            return structured

        return hook


def _origin(kind: object) -> object:
    """Return ``get_origin``, whose own type would forbid the comparison with a class."""
    return get_origin(kind)


def _is_bounded(kind: object) -> bool:
    return get_origin(kind) is Annotated and any(isinstance(mark, Bound) for mark in get_args(kind)[1:])


def _string(value: object, _: object) -> object:
    if not isinstance(value, str):
        raise TypeError(_expected("a string", value))
    return value


def _integer(value: object, _: object) -> object:
    if isinstance(value, float) and value.is_integer():
        return int(value)  # JSON Schema calls 1.0 an integer
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(_expected("an integer", value))
    return value


def _number(value: object, _: object) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(_expected("a number", value))
    try:
        number = float(value)
    except OverflowError as error:
        raise ValueError("must be a finite number") from error
    if not math.isfinite(number):
        raise ValueError("must be a finite number")
    return number


def _boolean(value: object, _: object) -> object:
    if not isinstance(value, bool):
        raise TypeError(_expected("true or false", value))
    return value


_SCALARS: Mapping[type, Hook] = {str: _string, int: _integer, float: _number, bool: _boolean}

_JSON_NAMES = {
    bool: "a boolean",
    dict: "an object",
    float: "a number",
    int: "a number",
    list: "an array",
    str: "a string",
    type(None): "null",
}


def _expected(what: str, value: object) -> str:
    return f"must be {what}, not {_JSON_NAMES.get(type(value), 'that')}"


def _walk(error: BaseException, path: str = "") -> Iterator[FieldError]:
    """Flatten cattrs' tree of errors into field errors."""
    if isinstance(error, BaseValidationError):
        for each in error.exceptions:
            yield from _walk(each, path + _step(each, path))
    elif isinstance(error, KeyError) and error.args:
        yield FieldError(path, "is required")
    else:
        yield FieldError(path, str(error.args[0]) if error.args else "is malformed")


def _step(error: BaseException, path: str) -> str:
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, AttributeValidationNote):
            return f".{note.name}" if path else note.name
        if isinstance(note, IterableValidationNote):
            return f"[{note.index}]"
    return ""


def _plain(number: float) -> str:
    """Return a number as text; a whole number below 2**64 with all its digits."""
    return str(int(number)) if float(number).is_integer() and abs(number) < 2**64 else f"{number:g}"
