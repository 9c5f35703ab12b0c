"""``mlxk list``: the models on this disk."""

import argparse
from collections.abc import Sequence

from mlxk.domain.models.model import ModelDescription, Origin
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import BOLD, RED, Output
from mlxk.entrypoints.cli.render import model_json, tables


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the pattern and the filters. Filters apply to the table, never to JSON."""
    parser.add_argument("pattern", nargs="?", metavar="PATTERN", help="part of a name, or a path: ., ./prefix-, /dir")
    parser.add_argument("-a", "--all", action="store_true", help="also models that cannot run")
    parser.add_argument("--health", action="store_true", help="add health columns")
    parser.add_argument("-v", "--verbose", action="store_true", help="every MLX model, full names, more columns")


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Print a table, or every model as JSON."""
    container = context.build(context.settings)
    models = container.use_cases.list_models()(arguments.pattern)
    if output.as_json:
        reading = container.adapters.memory_probe().read()
        output.document("list", model_json.model_list(models, reading))
        return DONE
    view = tables.ListView(everything=arguments.all, health=arguments.health, verbose=arguments.verbose)
    now = container.adapters.clock().now()
    header, *rows = tables.model_table(models, view, now, output.width).splitlines()
    output.line(output.paint(header, BOLD))
    for row in rows:
        output.line(output.paint(row, RED) if "unhealthy" in row else row)
    if output.shows_progress:
        _explain_empty_table(output, models, arguments.pattern)
    return DONE


def _explain_empty_table(output: Output, models: Sequence[ModelDescription], pattern: str | None) -> None:
    """Print a note where nothing matches, or where only built-in models are listed."""
    if pattern and not models:
        output.note(f"No model fits '{pattern}'.")
    elif not pattern and all(each.handle.origin is Origin.BUILT_IN for each in models):
        output.note(tables.NOTHING_PULLED)
