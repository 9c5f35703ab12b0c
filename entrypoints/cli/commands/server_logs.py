"""``mlxk logs``: the log of a server that runs in the background."""

import argparse
import os
import time

from mlxk.domain.errors import StorageError, UsageError, ValidationError
from mlxk.entrypoints import server_log
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.exit_status import DONE, INTERRUPTED
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.render.formatting import printable
from mlxk.entrypoints.server_log import LogReader

DEFAULT_LINES = 50
LOOK_SECONDS = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which log, and how much of it."""
    parser.add_argument("-f", "--follow", action="store_true", help="print further lines as they come, until Ctrl-C")
    parser.add_argument(
        "-n", "--lines", type=int, default=DEFAULT_LINES, metavar="N", help=f"how many lines ({DEFAULT_LINES})"
    )
    parser.add_argument("--port", type=int, metavar="N", help="of the server on this port; else the log written last")


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Print the last lines of the log."""
    if arguments.lines < 0:
        raise ValidationError(f"--lines must be at least 0 (got {arguments.lines})")
    if arguments.follow and output.as_json:
        raise UsageError("--follow and --json exclude each other")
    folder = context.settings.state_folder
    named = server_log.path_of(folder, f"server-{arguments.port}")
    path = server_log.newest(folder) if arguments.port is None else named
    if path is None or not os.path.isfile(path):
        raise StorageError(
            "there is no log" + (f" of a server on port {arguments.port}" if arguments.port is not None else ""),
            hint="A server in the background writes one: mlxk serve --background",
        )
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
    """Print what is appended, also after the file was replaced, until Ctrl-C."""
    try:
        while True:
            lines = log.further()
            for line in lines:
                output.line(printable(line))
            if not lines:
                time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        return INTERRUPTED
