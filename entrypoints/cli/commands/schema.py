"""``mlxk schema [COMMAND]``: the JSON Schema of a command's output."""

import argparse
import json
import os

from mlxk import contracts
from mlxk.domain.errors import ValidationError
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.command_line_parser import closest, did_you_mean
from mlxk.entrypoints.cli.output import DONE, Output
from mlxk.entrypoints.cli.synonyms import COMMAND_SYNONYMS

_SUFFIX = ".schema.json"
_FOLDER = os.path.join(os.path.dirname(os.path.abspath(contracts.__file__)), "cli", "v0")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command whose schema to print."""
    name = parser.add_argument("name", nargs="?", metavar="COMMAND", help="list the names when left out")
    name.completer = _complete_names  # type: ignore[attr-defined]  # argcomplete's interface


def _complete_names(prefix: str, **_context: object) -> list[str]:
    return [name for name in _names() if name.startswith(prefix)]


def _names() -> list[str]:
    return sorted(name.removesuffix(_SUFFIX) for name in os.listdir(_FOLDER) if name.endswith(_SUFFIX))


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Print one schema, or the names of all schemas."""
    names = _names()
    if arguments.name is None:
        if output.as_json:
            output.document("schema", {"names": names})
        else:
            output.text("".join(f"{name}\n" for name in names))
        return DONE
    if arguments.name not in names:
        near = did_you_mean(closest(arguments.name, names, COMMAND_SYNONYMS))
        hint = f"{near} mlxk schema lists the names." if near else f"One of: {', '.join(names)}"
        raise ValidationError(f"there is no schema named '{arguments.name}'", hint=hint)
    with open(os.path.join(_FOLDER, arguments.name + _SUFFIX), encoding="utf-8") as file:
        schema = json.load(file)
    if output.as_json:
        output.document("schema", {"name": arguments.name, "schema": schema})
    else:
        output.text(json.dumps(schema, indent=2) + "\n")
    return DONE
