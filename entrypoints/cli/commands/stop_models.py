"""``mlxk stop MODEL`` and ``mlxk stop --all``: have servers unload a model, or end."""

import argparse

from mlxk.application.ports.other_processes import RunningServers
from mlxk.domain.errors import ExecutionError, UsageError
from mlxk.entrypoints.cli.command import CommandContext, add_model_argument
from mlxk.entrypoints.cli.commands.list_running import NO_SERVER, server_json
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.progress import Spinner


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model."""
    add_model_argument(parser, optional=True)
    parser.add_argument("-a", "--all", action="store_true", help="stop every server of yours")


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Unload a model, or stop the servers, and say so."""
    if arguments.all == (arguments.model is not None):
        fault = (
            "a model and --all exclude each other" if arguments.all else "stop needs a model, or --all for every server"
        )
        raise UsageError(fault, hint="What runs: mlxk ps")
    container = context.build(context.settings)
    if arguments.all:
        return _stop_all(container.adapters.running_servers(), output)
    stopped = container.use_cases.stop_models()(arguments.model)
    asked = [each for each in stopped if each.failure is None]
    for each in () if output.as_json else asked:
        done = "was unloaded" if each.unloaded else "will be unloaded when the server's work in progress has ended"
        output.line(f"{each.model.handle.label} {done} ({each.server.url})")
    models = [
        {"model": each.model.handle.name, "url": each.server.url, "pid": each.server.process, "unloaded": each.unloaded}
        for each in asked
    ]
    _report({"models": models, "servers": []}, [each.failure for each in stopped if each.failure is not None], output)
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
    _report({"models": [], "servers": [server_json(server) for server in stopped]}, failures, output)
    if not stopped and not output.as_json:
        output.line(NO_SERVER)
    return DONE


def _report(data: dict[str, list[dict[str, object]]], failures: list[ExecutionError], output: Output) -> None:
    """Write the JSON document of what was done, or raise with the servers that failed; ``detail`` has the rest."""
    if failures:
        message = "; ".join(each.message for each in failures)
        raise ExecutionError(message, hint="Try again, or end the process by its number: kill -9 NUMBER", detail=data)
    if output.as_json:
        output.document("stop", data)
