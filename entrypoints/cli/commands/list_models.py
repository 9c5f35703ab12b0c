"""``mlxk list``: the models on this disk."""

import argparse

from mlxk.application.use_cases.resolve_model import close_names
from mlxk.domain.models.model import ModelDescription, Origin
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import BOLD, RED, Output
from mlxk.entrypoints.cli.progress import Spinner
from mlxk.entrypoints.cli.render import model_json
from mlxk.entrypoints.cli.render.model_table import LEGEND, NOTHING_PULLED, ListView, ModelTable, model_table
from mlxk.entrypoints.cli.suggestions import did_you_mean


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the pattern and the filters. Filters apply to the table, never to JSON."""
    parser.add_argument(
        "pattern", nargs="?", metavar="PATTERN", help="part of a name, 'tiny*', or a path: ., ./prefix-"
    )
    parser.add_argument("-a", "--all", action="store_true", help="also models that cannot run")
    parser.add_argument("--health", action="store_true", help="add health columns")
    parser.add_argument("-v", "--verbose", action="store_true", help="every MLX model, full names, more columns")
    parser.add_argument_group("columns", LEGEND)


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Print a table, or every model as JSON."""
    container = context.build(context.settings)
    with Spinner(output, "Reading the models"):
        models = container.use_cases.list_models()(arguments.pattern)
    if output.as_json:
        reading = container.adapters.memory_probe().read()
        output.document("list", model_json.model_list(models, reading))
        return DONE
    view = ListView(everything=arguments.all, health=arguments.health, verbose=arguments.verbose)
    _print(model_table(models, view, container.adapters.clock().now(), output.width), output)
    if arguments.pattern and not models:
        known = [handle.name for handle in container.use_cases.resolve_model().matching()]
        near = did_you_mean(close_names(arguments.pattern, known))
        output.note(f"No model fits '{arguments.pattern}'. {near}".rstrip())
    elif not arguments.pattern and context.settings.file.entries:
        count = len(context.settings.file.entries)
        output.note(f"[{count} name{'s' if count > 1 else ''} of your own: mlxk alias]")
    elif output.shows_progress and not arguments.pattern and all(map(_is_built_in, models)):
        output.note(NOTHING_PULLED)
    return DONE


def _print(table: ModelTable, output: Output) -> None:
    """Print the table where it has rows, and on standard error what it does not show."""
    if table.rows:
        titles, rule = table.header
        output.line(output.paint(titles, BOLD))
        output.line(rule)
    for row in table.rows:
        output.line(row.text if row.healthy else output.paint(row.text, RED))
    for note in table.notes:
        output.note(note)


def _is_built_in(description: ModelDescription) -> bool:
    return description.handle.origin is Origin.BUILT_IN
