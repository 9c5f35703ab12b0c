"""Everything wrong with a request, each with the path of the field at fault, answered at once."""

from collections.abc import Sequence

import attrs

from mlxk.domain.errors import MlxkError, ParameterNotSupportedError, ValidationError

MAX_REPORTED = 20
"""Faults named in one answer."""


@attrs.frozen
class Fault:
    """One thing wrong with a request."""

    path: str
    """The field, such as ``messages[0].content``; empty for the body as a whole."""
    message: str
    """What is wrong with it, without the field's name and without its value."""
    unsupported: bool = False
    """Whether the value is legal, but asks for something that is not supported."""


def raise_for(faults: Sequence[Fault]) -> None:
    """Raise what is wrong; do nothing when nothing is.

    Raises:
        ParameterNotSupportedError: Everything is well-formed, but something is not supported.
        ValidationError: Anything else is wrong.
    """
    if not faults:
        return
    kind: type[MlxkError] = ValidationError
    if all(fault.unsupported for fault in faults):
        kind = ParameterNotSupportedError
    named = [fault for fault in faults if not fault.unsupported] or list(faults)
    ordered = [*named, *(fault for fault in faults if fault not in named)][:MAX_REPORTED]
    message = "; ".join(f"{fault.path}: {fault.message}" if fault.path else fault.message for fault in ordered)
    problems = [{"param": fault.path or None, "message": fault.message} for fault in ordered]
    raise kind(message, detail={"problems": problems})
