"""The kinds of tool calls that clients run, and how the arguments that a model writes become the fields of an item."""

import json
import re
from collections.abc import Mapping
from typing import Any

import attrs

from mlxk.domain.text import is_valid_unicode


@attrs.frozen
class CallKind:
    """A kind of call."""

    item: str
    """The type of its item."""
    prefix: str
    """Begins the ids of its items."""
    field: str
    """The field of the item with what the model wrote."""
    event: str | None = None
    """Begins the types of the events with the parts of that field; None for a kind without such events."""


FUNCTION = CallKind("function_call", "fc", "arguments", "response.function_call_arguments")
CUSTOM = CallKind("custom_tool_call", "ctc", "input", "response.custom_tool_call_input")
"""Takes plain text; the model writes it as the one argument of a function."""
TOOL_SEARCH = CallKind("tool_search_call", "tsc", "arguments")
LOCAL_SHELL = CallKind("local_shell_call", "lsh", "action")
SHELL = CallKind("shell_call", "sh", "action")
APPLY_PATCH = CallKind("apply_patch_call", "apc", "operation")

TEXT_ARGUMENT = "input"
"""The argument of the function that a custom tool becomes."""

_STRINGS = {"type": "array", "items": {"type": "string"}}


def _object(required: tuple[str, ...], **properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


PARAMETERS: Mapping[CallKind, dict[str, Any]] = {
    CUSTOM: _object(
        (TEXT_ARGUMENT,), **{TEXT_ARGUMENT: {"type": "string", "description": "The input, as plain text."}}
    ),
    TOOL_SEARCH: _object(("query",), query={"type": "string"}, limit={"type": "integer"}),
    LOCAL_SHELL: _object(
        ("command",), command=_STRINGS, working_directory={"type": "string"}, timeout_ms={"type": "integer"}
    ),
    SHELL: _object(("commands",), commands=_STRINGS, timeout_ms={"type": "integer"}),
    APPLY_PATCH: _object(
        ("type", "path"),
        type={"type": "string", "enum": ["create_file", "update_file", "delete_file"]},
        path={"type": "string"},
        diff={"type": "string", "description": "A unified diff; all lines begin with + in a new file."},
    ),
}
"""The JSON Schema of the arguments, for the kinds whose tools bring none."""

DESCRIPTIONS: Mapping[CallKind, str] = {
    TOOL_SEARCH: "Searches for further tools by what they do; those that are found can be called afterwards.",
    LOCAL_SHELL: "Runs a program with its arguments on the user's machine and returns its output.",
    SHELL: "Runs shell commands on the user's machine, one after the other, and returns their output.",
    APPLY_PATCH: "Creates, changes or deletes a file on the user's machine.",
}
"""What the model is told of the tools that bring no description."""


def field_value(kind: CallKind, arguments: str) -> Any:  # noqa: ANN401 - text or an object, by the kind
    """Return the value of the kind's field for the arguments that the model wrote, complete or not."""
    if kind is FUNCTION:
        return arguments
    if kind is CUSTOM:
        return plain_text(arguments)
    given = _parsed(arguments)
    written = given if isinstance(given, dict) else {"query" if kind is TOOL_SEARCH else "command": arguments}
    if kind is LOCAL_SHELL:
        command = written.get("command", [])
        program = ["sh", "-c", command] if isinstance(command, str) else command
        return {"env": {}, **written, "type": "exec", "command": program}
    if kind is SHELL:
        commands = written.pop("commands", None) or written.pop("command", [])
        unlimited = {"timeout_ms": None, "max_output_length": None}
        return {**unlimited, **written, "commands": [commands] if isinstance(commands, str) else commands}
    return written


_OPENING = re.compile(r"""\s*\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\"""")
_CUT_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?$")


def plain_text(arguments: str) -> str:
    """Return the text of a custom call: its one argument, complete or cut off, or the arguments as they are."""
    given = _parsed(arguments)
    if isinstance(given, dict):
        texts = [given[TEXT_ARGUMENT]] if TEXT_ARGUMENT in given else list(given.values())
        return texts[0] if len(texts) == 1 and isinstance(texts[0], str) else arguments if given else ""
    if isinstance(given, str):
        return given
    opening = _OPENING.match(arguments)
    if opening is None:
        return arguments
    rest = _CUT_ESCAPE.sub("", arguments[opening.end() :])
    cut = _parsed(f'"{rest}"')
    return cut if isinstance(cut, str) else arguments


def _parsed(text: str) -> object:
    """Return the JSON value of a text, None when it is none; half surrogate pairs in it are replaced."""
    try:
        value: object = json.loads(text, strict=False, parse_constant=lambda name: None)
        return value if is_valid_unicode(json.dumps(value, ensure_ascii=False)) else _valid(value)
    except (ValueError, RecursionError):
        return None


def _valid(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [_valid(each) for each in value]
    if isinstance(value, dict):
        return {_valid(name): _valid(each) for name, each in value.items()}
    return value
