"""Faults of a request, each with the path of its field, reported together."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

import attrs

from mlxk.domain.errors import MlxkError, ParameterNotSupportedError, ValidationError

Failure = TypeVar("Failure", bound=MlxkError)

MAX_REPORTED = 20
"""Faults reported in one error."""


@attrs.frozen
class FieldError:
    """One fault of a request."""

    path: str
    """The field, such as ``messages[0].content``; empty for the body as a whole."""
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
    kind: type[MlxkError] = ValidationError
    if all(fault.unsupported for fault in faults):
        kind = unsupported
    named = [fault for fault in faults if not fault.unsupported] or list(faults)
    ordered = [*named, *(fault for fault in faults if fault not in named)][:MAX_REPORTED]
    message = "; ".join(f"{fault.path}: {fault.message}" if fault.path else fault.message for fault in ordered)
    problems = [{"param": fault.path or None, "message": fault.message} for fault in ordered]
    raise kind(message, detail={"problems": problems})


def located(error: Failure, path: str, names: Mapping[str, str] = MappingProxyType({})) -> Failure:
    """Return an error with the field it is about.

    Args:
        error: Raised where the fields of the request are not known.
        path: The field, for an error that names none.
        names: Fields of the request by the names that an error may use; others stay as they are.
    """
    problems = (error.detail or {}).get("problems")
    if not isinstance(problems, list):
        return type(error).in_field(path, error.message, hint=error.hint)
    named = problems[0]
    if named["param"] not in names:
        return error
    return type(error).in_field(names[named["param"]], named["message"], hint=error.hint)
