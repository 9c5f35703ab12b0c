"""``mlxk du``: what cached models take on the disk."""

import argparse

from mlxk.entrypoints.cli.command import CommandContext, add_cached_pattern
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.progress import Spinner
from mlxk.entrypoints.cli.render import disk_space


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the pattern."""
    add_cached_pattern(parser)
    parser.add_argument("--revisions", action="store_true", help="list the revisions of each model as well")


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Print a table, the largest model first, or every model as JSON."""
    container = context.build(context.settings)
    with Spinner(output, "Measuring the cache"):
        usage = container.use_cases.measure_cache()(arguments.pattern)
    free = container.adapters.model_cache().free_bytes()
    if output.as_json:
        output.document("du", disk_space.usage_json(usage, free))
        return DONE
    if usage.models:
        output.table(disk_space.usage_table(usage, output.width, with_revisions=arguments.revisions))
    output.text(disk_space.usage_summary(usage, free))
    if arguments.pattern and not usage.models and output.shows_progress:
        output.note(f"No cached model fits '{arguments.pattern}'.")
    return DONE
