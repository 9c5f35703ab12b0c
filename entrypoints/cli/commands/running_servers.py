"""``ps``, ``stop`` and ``logs``: this user's running servers."""

import argparse
import os
import time

from mlxk.application.ports.other_processes import RunningServer, RunningServers
from mlxk.application.ports.text_generator import ResidentModel
from mlxk.domain.errors import ExecutionError, StorageError, UsageError, ValidationError
from mlxk.entrypoints import server_log
from mlxk.entrypoints.cli.command import CommandContext, add_model_argument
from mlxk.entrypoints.cli.output import DONE, INTERRUPTED, Output
from mlxk.entrypoints.cli.progress import Spinner
from mlxk.entrypoints.cli.render.formatting import decimal_size, printable, table
from mlxk.entrypoints.server_log import LogReader

_NO_SERVER = "No server of yours is running. Start one: mlxk serve --background"
_NOTHING = "-"
_MINUTE, _HOUR = 60, 3600
_DEFAULT_LINES = 50
_POLL_SECONDS = 0.2
"""Pause between two reads of a followed log."""


class PsCommand:
    """``mlxk ps``: this user's running servers, and the models that they have in memory."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare nothing."""

    def execute(self, _: argparse.Namespace, context: CommandContext, output: Output) -> int:
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
                    "servers": [_server_json(server) for server in servers],
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
            output.line(_NO_SERVER)
        return DONE


def _server_json(server: RunningServer) -> dict[str, object]:
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
        f"{model.context_length:,}" if model.context_length else _NOTHING,
        _until(model),
        f"{model.tokens_per_second:.1f}" if model.tokens_per_second else _NOTHING,
        f"{server.url} ({server.process})",
    ]


def _until(model: ResidentModel) -> str:
    """Return when a model is unloaded, as shown in the table."""
    if model.in_use:
        return "in use"
    left = model.idle_seconds_left
    if left is None:
        return "it is stopped"
    if left < _MINUTE:
        return f"in {left:.0f}s"
    return f"in {left / _MINUTE:.0f}m" if left < _HOUR else f"in {left / _HOUR:.1f}h"


class StopCommand:
    """``mlxk stop MODEL`` and ``mlxk stop --all``: have servers unload a model, or end."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the model."""
        add_model_argument(parser, optional=True)
        parser.add_argument("-a", "--all", action="store_true", help="stop every server of yours")

    def execute(self, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
        """Unload a model, or stop the servers, and print the result."""
        if arguments.all == (arguments.model is not None):
            fault = (
                "a model and --all exclude each other"
                if arguments.all
                else "stop needs a model, or --all for every server"
            )
            raise UsageError(fault, hint="What runs: mlxk ps")
        container = context.build(context.settings)
        if arguments.all:
            return _stop_all(container.adapters.running_servers(), output)
        stopped = container.use_cases.stop_models()(arguments.model)
        accepted = [each for each in stopped if each.failure is None]
        for each in () if output.as_json else accepted:
            done = "was unloaded" if each.unloaded else "will be unloaded when the server's work in progress has ended"
            output.line(f"{each.model.handle.label} {done} ({each.server.url})")
        models = [
            {
                "model": each.model.handle.name,
                "url": each.server.url,
                "pid": each.server.process,
                "unloaded": each.unloaded,
            }
            for each in accepted
        ]
        _report(
            {"models": models, "servers": []}, [each.failure for each in stopped if each.failure is not None], output
        )
        return DONE


def _stop_all(running: RunningServers, output: Output) -> int:
    servers = running.servers()
    stopped, failures = [], [ExecutionError(fact) for fact in running.unseen()]
    for server in servers:
        try:
            with Spinner(output, f"Waiting for {server.url} to stop"):
                running.stop(server)
        except ExecutionError as error:
            failures.append(error)
            continue
        stopped.append(server)
        if not output.as_json:
            output.line(f"{server.url} (process {server.process}) has stopped.")
    _report({"models": [], "servers": [_server_json(server) for server in stopped]}, failures, output)
    if not stopped and not output.as_json:
        output.line(_NO_SERVER)
    return DONE


def _report(data: dict[str, list[dict[str, object]]], failures: list[ExecutionError], output: Output) -> None:
    """Print the JSON document; with failures, raise them instead, with the document in ``detail``."""
    if failures:
        message = "; ".join(each.message for each in failures)
        raise ExecutionError(message, hint="Try again, or end the process by its number: kill -9 NUMBER", detail=data)
    if output.as_json:
        output.document("stop", data)


class LogsCommand:
    """``mlxk logs``: the log of a server that runs in the background."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the log and the number of lines."""
        parser.add_argument(
            "-f", "--follow", action="store_true", help="print further lines as they come, until Ctrl-C"
        )
        parser.add_argument(
            "-n", "--lines", type=int, default=_DEFAULT_LINES, metavar="N", help=f"how many lines ({_DEFAULT_LINES})"
        )
        parser.add_argument(
            "--port", type=int, metavar="N", help="of the server on this port; else the log written last"
        )

    def execute(self, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
        """Print the last lines of the log."""
        if arguments.lines < 0:
            raise ValidationError(f"--lines must be at least 0 (got {arguments.lines})")
        if arguments.follow and output.as_json:
            raise UsageError("--follow and --json exclude each other")
        folder = context.settings.state_folder
        port_log = server_log.path_of(folder, f"server-{arguments.port}")
        path = server_log.newest(folder) if arguments.port is None else port_log
        if path is None or not os.path.isfile(path):
            hint = "A server in the background writes one: mlxk serve --background"
            if path is not None and (others := server_log.ports(folder)):
                hint = f"There are logs of the ports {', '.join(map(str, others))}."
            of_port = "" if path is None else f" of a server on port {arguments.port}"
            raise StorageError(f"there is no log{of_port}", hint=hint)
        with LogReader(path) as log:
            lines, is_shortened = log.last(arguments.lines, whole=arguments.follow)
            if is_shortened:
                output.note(f"Older lines are only in the file: {path}")
            if output.as_json:
                output.document("logs", {"path": path, "lines": lines})
                return DONE
            for line in lines:
                output.line(printable(line))
            return _follow(log, output) if arguments.follow else DONE


def _follow(log: LogReader, output: Output) -> int:
    """Print appended lines until Ctrl-C, also after the file was replaced."""
    try:
        while True:
            lines = log.further()
            for line in lines:
                output.line(printable(line))
            if not lines:
                time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        return INTERRUPTED
