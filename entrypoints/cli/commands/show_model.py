"""``mlxk show MODEL``: one model in detail."""

import argparse
from typing import TYPE_CHECKING

from mlxk.application.policy import estimate_memory
from mlxk.domain.errors import UsageError
from mlxk.domain.generation.settings import KV_BITS, KV_GROUP_SIZES, EngineOptions
from mlxk.domain.models.footprint import MemoryVerdict
from mlxk.domain.models.model import ModelDetails
from mlxk.entrypoints import settings_edit
from mlxk.entrypoints.cli.command import CommandContext, add_cpu_argument, add_model_argument, computing_settings
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.progress import Spinner
from mlxk.entrypoints.cli.render import model_json, tables
from mlxk.entrypoints.cli.render.formatting import printable

if TYPE_CHECKING:
    from mlxk.entrypoints.container import Container


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model and the section to print."""
    add_model_argument(parser)
    section = parser.add_mutually_exclusive_group()
    section.add_argument("--files", action="store_true", help="list its files")
    parser.add_argument(
        "--remote", action="store_true", help="ask the hub: its card, sizes, and whether it fits, before a download"
    )
    parser.add_argument(
        "--recalc-hash", action="store_true", help="record the content hash of a managed workspace anew"
    )
    add_cpu_argument(parser)
    parser.add_argument(
        "--kv-bits", type=int, choices=KV_BITS, help="estimate the memory with keys and values in so many bits"
    )
    parser.add_argument("--kv-group-size", type=int, choices=KV_GROUP_SIZES, help="numbers of them that share a scale")
    section.add_argument("--config", action="store_true", help="print its config.json")
    section.add_argument(
        "--format-report", action="store_true", help="try its chat template and tokenizer, and print what they do"
    )


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Print the model and one section: metadata, files or config."""
    container = context.build(computing_settings(arguments, context.settings))
    cache = EngineOptions(kv_bits=arguments.kv_bits, kv_group_size=arguments.kv_group_size)
    cache.validate()
    section = "files" if arguments.files else "config" if arguments.config else "metadata"
    if arguments.remote:
        return _show_remote(arguments, section, container, output)
    with Spinner(output, "Reading the model"):
        details = container.use_cases.show_model()(arguments.model, recalculate_hash=arguments.recalc_hash)
    verdict = estimate_memory(details.description, container.adapters.memory_probe(), cache=cache)
    if arguments.recalc_hash and not output.as_json:
        output.note("The content hash is recorded anew; the workspace is clean.")
    if arguments.format_report:
        return _report_formats(details, verdict, arguments.recalc_hash, container, output)
    if output.as_json:
        output.document("show", model_json.model_details(details, section, verdict, arguments.recalc_hash))
        return DONE
    name = details.description.handle.alias
    if name is not None:
        values = settings_edit.values_text(context.settings.file.entries[name])
        output.line(printable(f"Name: {name} ({values})"))
    output.text(tables.details_text(details, section, container.adapters.clock().now(), verdict))
    return DONE


def _show_remote(arguments: argparse.Namespace, section: str, container: "Container", output: Output) -> int:
    from mlxk.entrypoints.cli.render import remote_models  # noqa: PLC0415

    for flag in ("recalc_hash", "format_report", "kv_bits", "kv_group_size"):
        if getattr(arguments, flag):
            option = flag.replace("_", "-")
            raise UsageError(
                f"--{option} works on a model that is here, not with --remote", hint="Leave one of the two out."
            )
    with Spinner(output, "Asking the hub"):
        details = container.use_cases.show_remote_model()(arguments.model)
    if output.as_json:
        output.document("show", remote_models.card_json(details, section))
    else:
        output.text(remote_models.card_text(details, section))
    return DONE


def _report_formats(
    details: ModelDetails, verdict: MemoryVerdict, hash_updated: bool, container: "Container", output: Output
) -> int:
    try:
        with Spinner(output, "Loading the tokenizer"):
            report = container.use_cases.tokenize_text().report(details.description.handle)
    finally:
        container.adapters.text_generator().close()
    if output.as_json:
        data = model_json.model_details(details, "formats", verdict, hash_updated)
        output.document("show", {**data, "format_report": tables.report_json(report)})
        return DONE
    output.text(tables.details_text(details, "formats", container.adapters.clock().now(), verdict))
    output.text(tables.report_text(report))
    return DONE
