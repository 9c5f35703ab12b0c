"""``mlxk ps``: this user's running servers, and the models that they have in memory."""

import argparse

from mlxk.application.ports.other_processes import RunningServer
from mlxk.application.ports.text_generator import ResidentModel
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.render.formatting import decimal_size, table

NO_SERVER = "No server of yours is running. Start one: mlxk serve --background"
NOTHING = "-"
_MINUTE, _HOUR = 60, 3600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare nothing."""


def execute(_: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Print a table of models, or servers and models as JSON."""
    running = context.build(context.settings).adapters.running_servers()
    servers, unseen = running.servers(), running.unseen()
    for fact in unseen:
        output.note(f"[{fact}]")
    models = [(server, model) for server in servers for model in server.models]
    models.sort(key=lambda each: (each[1].handle.label, each[0].process))
    if output.as_json:
        output.document(
            "ps",
            {
                "servers": [server_json(server) for server in servers],
                "models": [_model_json(*each) for each in models],
            },
        )
        return DONE
    if models:
        header = ["Name", "Size", "Context", "Until", "Tokens/s", "Server"]
        output.table(table(header, [_row(*each) for each in models], output.width))
    for server in servers:
        if not server.models:
            output.line(f"{server.url} (process {server.process}) has no model in memory.")
    if not servers and not unseen:
        output.line(NO_SERVER)
    return DONE


def server_json(server: RunningServer) -> dict[str, object]:
    """Return a server as JSON."""
    return {"url": server.url, "pid": server.process, "version": server.version}


def _model_json(server: RunningServer, model: ResidentModel) -> dict[str, object]:
    return {
        "model": model.handle.name,
        "revision": model.handle.revision,
        "url": server.url,
        "pid": server.process,
        "weight_bytes": model.weight_bytes,
        "context_length": model.context_length,
        "in_use": model.in_use,
        "idle_seconds_left": None if model.idle_seconds_left is None else round(model.idle_seconds_left, 1),
        "tokens_per_second": None if model.tokens_per_second is None else round(model.tokens_per_second, 2),
    }


def _row(server: RunningServer, model: ResidentModel) -> list[str]:
    return [
        model.handle.label,
        decimal_size(model.weight_bytes),
        f"{model.context_length:,}" if model.context_length else NOTHING,
        _until(model),
        f"{model.tokens_per_second:.1f}" if model.tokens_per_second else NOTHING,
        f"{server.url} ({server.process})",
    ]


def _until(model: ResidentModel) -> str:
    """Return when a model is unloaded: it stays, is in use, or goes in so long."""
    if model.in_use:
        return "in use"
    left = model.idle_seconds_left
    if left is None:
        return "it is stopped"
    if left < _MINUTE:
        return f"in {left:.0f}s"
    return f"in {left / _MINUTE:.0f}m" if left < _HOUR else f"in {left / _HOUR:.1f}h"
