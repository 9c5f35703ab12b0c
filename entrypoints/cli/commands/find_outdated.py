"""``mlxk outdated``: cached models of which the hub has a newer revision."""

import argparse

from mlxk.entrypoints.cli.command import CommandContext, add_cached_pattern
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.progress import Spinner
from mlxk.entrypoints.cli.render import remote_models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the pattern."""
    add_cached_pattern(parser)
    parser.add_argument("-a", "--all", action="store_true", help="also models that are current")


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Ask the hub about each model, and print a table or JSON."""
    find_outdated = context.build(context.settings).use_cases.find_outdated()
    with Spinner(output, "Asking the hub"):
        compared = find_outdated(arguments.pattern)
    if output.as_json:
        output.document("outdated", remote_models.outdated_json(compared))
        return DONE
    text = remote_models.outdated_table(compared, output.width, everything=arguments.all)
    if text:
        output.table(text)
    output.note(remote_models.outdated_summary(compared))
    return DONE
