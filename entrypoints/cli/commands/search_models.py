"""``mlxk search TERMS``: models on the hub."""

import argparse

from mlxk.application.use_cases.browse_hub import DEFAULT_RESULTS
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.progress import Spinner
from mlxk.entrypoints.cli.render import remote_models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the terms and the limits."""
    parser.add_argument("words", nargs="+", metavar="TERMS", help="words of the names of models, such as: llama 3b")
    parser.add_argument(
        "--limit", type=int, default=DEFAULT_RESULTS, metavar="N", help=f"most models (default: {DEFAULT_RESULTS})"
    )
    parser.add_argument("--mlx", action="store_true", help="only models that are made for MLX")


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Ask the hub, and print a table or JSON."""
    search = context.build(context.settings).use_cases.search_models()
    terms = " ".join(arguments.words)
    with Spinner(output, "Searching the hub"):
        found = search(terms, arguments.limit, mlx_only=arguments.mlx)
    if output.as_json:
        output.document("search", remote_models.search_json(terms, found))
        return DONE
    if not found:
        output.note(f"The hub has no model with '{terms}' in its name.")
        return DONE
    output.table(remote_models.search_table(found, output.width))
    output.note(remote_models.next_step(found))
    return DONE
