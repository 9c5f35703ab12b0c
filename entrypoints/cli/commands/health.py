"""``mlxk health [MODEL]``: checks that the files of models are complete and valid."""

import argparse

from mlxk.domain.models.model import HealthStatus
from mlxk.entrypoints.cli.command import CommandContext, add_model_argument
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import RED, Output
from mlxk.entrypoints.cli.progress import ByteProgress, Spinner
from mlxk.entrypoints.cli.render import model_json, tables


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the optional model."""
    add_model_argument(parser, optional=True)
    parser.add_argument("--deep", action="store_true", help="read every byte and compare it with the recorded digests")


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Print one line per model. The exit status is 0 for unhealthy models too: they are a result, not an error."""
    check = context.build(context.settings).use_cases.check_health()
    if arguments.deep:
        with ByteProgress(output) as progress:
            entries = check(
                arguments.model, deep=True, progress=lambda handle, done, total: progress(handle.name, done, total)
            )
    else:
        with Spinner(output, "Checking the models"):
            entries = check(arguments.model)
    if output.as_json:
        output.document("health", model_json.health(entries))
        return DONE
    for line in tables.health_text(entries, output.width).splitlines():
        output.line(output.paint(line, RED) if line.startswith(HealthStatus.UNHEALTHY.value) else line)
    return DONE
