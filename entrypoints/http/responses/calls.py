"""The kinds of tool calls that clients run, and the conversion of a model's arguments into the fields of an item."""

import re
from collections.abc import Mapping
from typing import Any

import attrs

from mlxk.entrypoints.http.generation.blocks import parsed_json


@attrs.frozen
class CallKind:
    """A kind of tool call."""

    item: str
    """``type`` of its items."""
    prefix: str
    """Prefix of the ids of its items."""
    field: str
    """The field of an item that holds the model's arguments."""
    event: str | None = None
    """Prefix of the types of the events that stream this field; None if it is not streamed."""


FUNCTION = CallKind("function_call", "fc", "arguments", "response.function_call_arguments")
CUSTOM = CallKind("custom_tool_call", "ctc", "input", "response.custom_tool_call_input")
"""Takes plain text; the model calls a function with it as the only argument."""
TOOL_SEARCH = CallKind("tool_search_call", "tsc", "arguments")
LOCAL_SHELL = CallKind("local_shell_call", "lsh", "action")
SHELL = CallKind("shell_call", "sh", "action")
APPLY_PATCH = CallKind("apply_patch_call", "apc", "operation")

TEXT_ARGUMENT = "input"
"""The argument of the function that represents a custom tool."""

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
"""JSON Schemas of the arguments, for the kinds whose tools have none."""

DESCRIPTIONS: Mapping[CallKind, str] = {
    TOOL_SEARCH: "Searches for further tools by what they do; those that are found can be called afterwards.",
    LOCAL_SHELL: "Runs a program with its arguments on the user's machine and returns its output.",
    SHELL: "Runs shell commands on the user's machine, one after the other, and returns their output.",
    APPLY_PATCH: "Creates, changes or deletes a file on the user's machine.",
}
"""Descriptions for the model, for the kinds whose tools have none."""


def field_value(kind: CallKind, arguments: str) -> Any:  # noqa: ANN401 - text or an object, by the kind
    """Return the value of the kind's field for the arguments that the model wrote, complete or truncated."""
    if kind is FUNCTION:
        return arguments
    if kind is CUSTOM:
        return plain_text(arguments)
    value = _parsed(arguments)
    fields = value if isinstance(value, dict) else {"query" if kind is TOOL_SEARCH else "command": arguments}
    if kind is LOCAL_SHELL:
        command = fields.get("command", [])
        program = ["sh", "-c", command] if isinstance(command, str) else command
        return {"env": {}, **fields, "type": "exec", "command": program}
    if kind is SHELL:
        commands = fields.pop("commands", None) or fields.pop("command", [])
        no_limits = {"timeout_ms": None, "max_output_length": None}
        return {**no_limits, **fields, "commands": [commands] if isinstance(commands, str) else commands}
    return fields


_FIRST_STRING = re.compile(r"""\s*\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\"""")
"""A JSON object up to the first character of its first value, a string."""

_TRUNCATED_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?$")


def plain_text(arguments: str) -> str:
    """Return the text of a custom call: the only argument, complete or truncated, or else the arguments unchanged."""
    value = _parsed(arguments)
    if isinstance(value, dict):
        texts = [value[TEXT_ARGUMENT]] if TEXT_ARGUMENT in value else list(value.values())
        return texts[0] if len(texts) == 1 and isinstance(texts[0], str) else arguments if value else ""
    if isinstance(value, str):
        return value
    opening = _FIRST_STRING.match(arguments)
    if opening is None:
        return arguments
    rest = _TRUNCATED_ESCAPE.sub("", arguments[opening.end() :])
    text = _parsed(f'"{rest}"')
    return text if isinstance(text, str) else arguments


def _parsed(text: str) -> object:
    """Return the JSON value of a text; None if it is not valid JSON."""
    try:
        return parsed_json(text)
    except ValueError:
        return None
