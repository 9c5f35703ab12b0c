"""``mlxk show MODEL``: one model in detail."""

import argparse

from mlxk.application.policy import estimate_memory
from mlxk.entrypoints.cli.command import CommandContext, add_model_argument
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.render import model_json, tables


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model and the section to print."""
    add_model_argument(parser)
    section = parser.add_mutually_exclusive_group()
    section.add_argument("--files", action="store_true", help="list its files")
    parser.add_argument(
        "--recalc-hash", action="store_true", help="record the content hash of a managed workspace anew"
    )
    section.add_argument("--config", action="store_true", help="print its config.json")


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Print the model and one section: metadata, files or config."""
    container = context.build(context.settings)
    details = container.use_cases.show_model()(arguments.model, recalculate_hash=arguments.recalc_hash)
    section = "files" if arguments.files else "config" if arguments.config else "metadata"
    verdict = estimate_memory(details.description, container.adapters.memory_probe())
    if output.as_json:
        output.document("show", model_json.model_details(details, section, verdict, arguments.recalc_hash))
        return DONE
    output.text(tables.details_text(details, section, container.adapters.clock().now(), verdict))
    if arguments.recalc_hash:
        output.note("The content hash is recorded anew; the workspace is clean.")
    return DONE
