"""Everything wrong with a request, each with the path of the field at fault, answered at once."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

import attrs

from mlxk.domain.errors import MlxkError, ParameterNotSupportedError, ValidationError

Failure = TypeVar("Failure", bound=MlxkError)

MAX_REPORTED = 20
"""Faults named in one answer."""


@attrs.frozen
class FieldError:
    """One thing wrong with a request."""

    path: str
    """The field, such as ``messages[0].content``; empty for the body as a whole."""
    message: str
    """What is wrong with it, without the field's name and without its value."""
    unsupported: bool = False
    """Whether the value is legal, but asks for something that is not supported."""


def raise_for(faults: Sequence[FieldError], unsupported: type[MlxkError] = ParameterNotSupportedError) -> None:
    """Raise what is wrong; do nothing when nothing is.

    Args:
        faults: What is wrong.
        unsupported: What to raise when everything is well-formed, but something is not supported.

    Raises:
        ParameterNotSupportedError: As ``unsupported`` says.
        ValidationError: Anything else is wrong.
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
    """Return a failure with the field it is about.

    Args:
        error: What was raised where the fields of a request are not known.
        path: The field, for a failure that names none.
        names: The fields, by the names that a failure may have for them; others stay as they are.
    """
    problems = (error.detail or {}).get("problems")
    if not isinstance(problems, list):
        return type(error).in_field(path, error.message, hint=error.hint)
    named = problems[0]
    if named["param"] not in names:
        return error
    return type(error).in_field(names[named["param"]], named["message"], hint=error.hint)
