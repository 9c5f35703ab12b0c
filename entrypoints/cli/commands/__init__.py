"""The verbs: what each is called and where it stands. One module a verb, with its flags and what it does with them.

A module is imported when its verb is used, and imports its use case when it runs: a command pays only for itself.
"""

from importlib import import_module
from typing import NamedTuple, cast

from mlxk.entrypoints.cli.command import Command


class Verb(NamedTuple):
    """One entry of the help; a named tuple, since every start of the program makes all of them."""

    module: str
    help: str
    aliases: tuple[str, ...] = ()

    def load(self) -> Command:
        """Import the module."""
        return cast("Command", import_module(f"{__name__}.{self.module}"))


COMMANDS = {
    "list": Verb("list_models", "list models in the cache, in workspaces and built in"),
    "show": Verb("show_model", "show one model in detail"),
    "health": Verb("health", "check whether the files of models are whole"),
    "run": Verb("run_model", "ask a model, or chat with it"),
    "pull": Verb("pull_model", "fetch a model from the hub"),
    "rm": Verb("remove_model", "remove models from the cache"),
    "clone": Verb("clone_model", "make an editable copy of a model"),
    "convert": Verb("convert_model", "quantize a model, or repair its index, into a new workspace"),
    "push": Verb("push_model", "publish a workspace on the hub"),
    "serve": Verb("serve_models", "serve models to OpenAI-compatible clients", ("server",)),
    "embed": Verb("embed_text", "turn texts into vectors"),
    "embed-serve": Verb("serve_embeddings", "serve the vectors of one model"),
    "schema": Verb("schema", "print the JSON Schema of a command's output"),
    "completion": Verb("completion", "print the completion script of a shell"),
}
"""Every verb, in the order of the help."""


def verb_of(arguments: list[str]) -> str | None:
    """Return the verb of a command line: its first word that is one; None when there is none."""
    names = {alias: name for name, verb in COMMANDS.items() for alias in (name, *verb.aliases)}
    first = next((word for word in arguments if not word.startswith("-")), None)
    return names.get(first) if first is not None else None
