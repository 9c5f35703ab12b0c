"""Definitions of functions that models may call: the limits every door holds them to, whatever it reads them with."""

from collections.abc import Mapping
from typing import Any

MAX_TOOLS = 128
"""Tools on offer, as OpenAI has it."""

MAX_TOOL_BYTES = 64 * 1024
"""One definition, as JSON."""

MAX_NAME = 64
"""Characters of a function's name."""

DEFINITIONS = ("$defs", "definitions")
"""Where schemas keep what they refer to."""


def misplaced_definitions(parameters: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the keywords of a function's parameters under which definitions belong and something else stands."""
    given = parameters or {}
    return tuple(keyword for keyword in DEFINITIONS if not isinstance(given.get(keyword), dict | None))
