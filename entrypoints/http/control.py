"""What a worker reports to its supervisor: that it is ready, or why it cannot be.

A failure is one line of JSON, which the supervisor passes on as it is to the program that tells people.
"""

import json
from typing import Any

from mlxk.domain.errors import InternalError, MlxkError, all_error_types
from mlxk.entrypoints.wording import command_line_error


def failure_line(error: MlxkError) -> bytes:
    """Return a failure as a report."""
    message, hint = command_line_error(error)
    report = {"failure": error.code, "message": message, "hint": hint, "matches": list(error.matches)}
    return json.dumps(report).encode() + b"\n"


def failure_of(line: str | bytes) -> MlxkError:
    """Return the failure of a report."""
    report: dict[str, Any] = json.loads(line)
    kinds = {kind.code: kind for kind in all_error_types()}
    kind = kinds.get(report["failure"], InternalError)
    return kind(report["message"], hint=report["hint"], matches=tuple(report["matches"]))
