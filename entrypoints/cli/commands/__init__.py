"""The command table: the name of each command, its module and its help.

A module is imported when its command is used, so that a command loads only what it needs.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple, cast

from mlxk.entrypoints.cli.command import Command


class CommandEntry(NamedTuple):
    """One entry of the table."""

    module: str
    help: str
    aliases: tuple[str, ...] = ()

    def load(self) -> Command:
        """Import the module."""
        return cast("Command", import_module(f"{__name__}.{self.module}"))


COMMANDS = {
    "list": CommandEntry("list_models", "list models in the cache, in workspaces and built in"),
    "show": CommandEntry("show_model", "show one model in detail"),
    "health": CommandEntry("health", "check whether the files of models are whole"),
    "run": CommandEntry("run_model", "ask a model, or chat with it"),
    "pull": CommandEntry("pull_model", "fetch a model from the hub"),
    "rm": CommandEntry("remove_model", "remove models from the cache"),
    "clone": CommandEntry("clone_model", "make an editable copy of a model"),
    "convert": CommandEntry("convert_model", "quantize a model, or repair its index, into a new workspace"),
    "push": CommandEntry("push_model", "publish a workspace on the hub"),
    "serve": CommandEntry("serve_models", "serve models to OpenAI-compatible clients", ("server",)),
    "embed": CommandEntry("embed_text", "turn texts into vectors"),
    "embed-serve": CommandEntry("serve_embeddings", "serve the vectors of one model"),
    "schema": CommandEntry("schema", "print the JSON Schema of a command's output"),
    "completion": CommandEntry("completion", "print the completion script of a shell"),
}
"""All commands, in the order of the help."""


def command_of(arguments: Sequence[str]) -> str | None:
    """Return the command of a command line, which its first word names; None where it names none."""
    names = {alias: name for name, entry in COMMANDS.items() for alias in (name, *entry.aliases)}
    first = next((word for word in arguments if not word.startswith("-")), None)
    return names.get(first) if first is not None else None
