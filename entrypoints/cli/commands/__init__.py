"""The verbs, one module each: its flags, and what it does with them.

A command imports its use case when it runs, so that parsing stays fast.
"""

from mlxk.entrypoints.cli.commands import (
    clone_model,
    completion,
    convert_model,
    embed_text,
    health,
    list_models,
    pull_model,
    push_model,
    remove_model,
    run_model,
    schema,
    serve_models,
    show_model,
)
from mlxk.entrypoints.cli.commands.command import Command

COMMANDS: dict[str, Command] = {
    "list": list_models,
    "show": show_model,
    "health": health,
    "run": run_model,
    "pull": pull_model,
    "rm": remove_model,
    "clone": clone_model,
    "convert": convert_model,
    "push": push_model,
    "serve": serve_models,
    "embed": embed_text,
    "schema": schema,
    "completion": completion,
}
"""Every verb, in the order of the help."""
