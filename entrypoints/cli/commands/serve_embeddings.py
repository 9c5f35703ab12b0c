"""``mlxk embed-serve MODEL``: an embeddings server for one model, usable as ``serve --embed-backend``."""

import argparse
import os

from mlxk.domain.errors import FeatureGateError
from mlxk.entrypoints.cli.command import (
    CommandContext,
    add_cpu_argument,
    add_model_argument,
    add_pull_argument,
    fetch_absent,
    suggesting_pull,
)
from mlxk.entrypoints.cli.output import Output, success_line
from mlxk.entrypoints.server_address import ServerAddress
from mlxk.entrypoints.setting_table import LOG_LEVELS
from mlxk.entrypoints.settings import ServerSettings

DEFAULT_PORT = 8001
"""The default of ``serve`` is 8000."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, the address and the log."""
    add_model_argument(parser)
    parser.add_argument_group("alpha", "It requires MLXK2_ENABLE_ALPHA_FEATURES=1, and may still change.")
    parser.add_argument("--host", metavar="HOST", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, metavar="N", help="port to listen on; 0 takes any free one (8001)")
    parser.add_argument("--log-level", type=str.lower, choices=LOG_LEVELS, help="least severe events to log (info)")
    parser.add_argument(
        "--supervisor",
        action=argparse.BooleanOptionalAction,
        help="restart the server when it dies (yes), or serve in this process",
    )
    add_cpu_argument(parser)
    add_pull_argument(parser)


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Run the server until a signal ends it."""
    if not context.settings.enable_alpha:
        raise FeatureGateError(
            "embed-serve requires MLXK2_ENABLE_ALPHA_FEATURES=1", hint="Set the variable; the command may still change."
        )
    server = ServerSettings(
        host=arguments.host or ServerSettings().host,
        port=DEFAULT_PORT if arguments.port is None else arguments.port,
        model=arguments.model,
        embed_model=arguments.model,
        log_level=arguments.log_level or context.settings.serve.log_level or "info",
        cpu_dtype=arguments.cpu_dtype or context.settings.cpu_dtype,
        blas=arguments.blas or context.settings.blas,
        log_json=context.settings.log_json,
        file_variables=context.settings.file_variables,
        entries=tuple(context.settings.file.entries.items()),
        supervised=arguments.supervisor is not False,
    )
    server.validate()

    def announcement(address: ServerAddress) -> str:
        if not output.as_json:
            others = "".join(f"\nother machines reach it at {url}/v1/embeddings" for url in address.other_urls)
            return f"mlxk serves vectors at {address.url}/v1/embeddings (Ctrl-C stops it){others}"
        data = {"url": address.url, "other_urls": list(address.other_urls), "host": address.host, "port": address.port}
        data["model"] = arguments.model
        return success_line("embed-serve", {**data, "pid": os.getpid()})

    with suggesting_pull(context.settings):
        fetch_absent((arguments.model,), lambda: context.build(context.settings), output, pull=arguments.pull)
        return context.serve(context.settings, server, announcement)
