"""The commands that show models: ``list``, ``show`` and ``health``."""

import argparse
from typing import TYPE_CHECKING

from mlxk.application.policy import estimate_memory
from mlxk.application.use_cases.resolve_model import close_names
from mlxk.domain.errors import UsageError, ValidationError
from mlxk.domain.generation.settings import EngineOptions, settled
from mlxk.domain.models.footprint import MemoryVerdict
from mlxk.domain.models.kv_cache import ALL_KV_BITS, KV_GROUP_SIZES, KV_SCHEMES
from mlxk.domain.models.model import HealthStatus, ModelDescription, ModelDetails, Origin
from mlxk.domain.ranks import RankHost
from mlxk.entrypoints import settings_edit
from mlxk.entrypoints.cli.command import (
    CommandContext,
    add_cpu_argument,
    add_model_argument,
    complete_models,
    computing_settings,
    hosts_of_file,
    number_of_bits,
)
from mlxk.entrypoints.cli.command_line_parser import did_you_mean
from mlxk.entrypoints.cli.output import BOLD, DONE, RED, Output
from mlxk.entrypoints.cli.progress import ByteProgress, Spinner
from mlxk.entrypoints.cli.render import model_json, tables
from mlxk.entrypoints.cli.render.formatting import counted, printable
from mlxk.entrypoints.cli.render.model_table import LEGEND, NOTHING_PULLED, ListView, ModelTable, model_table

if TYPE_CHECKING:
    from mlxk.entrypoints.container import Container


class ListCommand:
    """``mlxk list``: the models on this disk."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the pattern and the filters. Filters apply to the table, never to JSON."""
        pattern = parser.add_argument(
            "pattern", nargs="?", metavar="PATTERN", help="part of a name, 'tiny*', or a path: ., ./prefix-"
        )
        complete_models(pattern)
        parser.add_argument("-a", "--all", action="store_true", help="also models that cannot run")
        parser.add_argument("--health", action="store_true", help="add health columns")
        parser.add_argument("-v", "--verbose", action="store_true", help="every MLX model, full names, more columns")
        parser.add_argument_group("columns", LEGEND)

    def execute(self, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
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
            names = [handle.name for handle in container.use_cases.resolve_model().matching()]
            near = did_you_mean(close_names(arguments.pattern, names))
            output.note(f"No model fits '{arguments.pattern}'. {near}".rstrip())
        elif not arguments.pattern and context.settings.file.entries:
            output.note(f"[{counted(len(context.settings.file.entries), 'name')} of your own: mlxk alias]")
        elif output.shows_progress and not arguments.pattern and all(map(_is_built_in, models)):
            output.note(NOTHING_PULLED)
        return DONE


def _print(table: ModelTable, output: Output) -> None:
    """Print the table, if it has rows, and its notes on standard error."""
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


class ShowCommand:
    """``mlxk show MODEL``: one model in detail."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
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
        parser.add_argument(
            "--hosts",
            metavar="FILE",
            help="ask the hosts of a file, as serve --hostfile takes it, what each would hold",
        )
        add_cpu_argument(parser)
        parser.add_argument(
            "--kv-bits",
            type=number_of_bits,
            choices=ALL_KV_BITS,
            help="estimate the memory with keys and values in so many bits",
        )
        parser.add_argument(
            "--kv-scheme", "--kv-quant-scheme", choices=KV_SCHEMES, help="and quantized so; turboquant is experimental"
        )
        parser.add_argument(
            "--kv-group-size", type=int, choices=KV_GROUP_SIZES, help="numbers of them that share a scale"
        )
        section.add_argument("--config", action="store_true", help="print its config.json")
        section.add_argument(
            "--format-report", action="store_true", help="try its chat template and tokenizer, and print what they do"
        )

    def execute(self, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
        """Print the model and one section: metadata, files or config."""
        container = context.build(computing_settings(arguments, context.settings))
        cache = EngineOptions(
            kv_bits=arguments.kv_bits, kv_scheme=arguments.kv_scheme, kv_group_size=arguments.kv_group_size
        )
        cache.validate()
        if cache != settled(cache) and not output.as_json:
            output.note(f"[turboquant in {settled(cache).kv_bits} bits; --kv-bits takes another number]")
        section = "files" if arguments.files else "config" if arguments.config else "metadata"
        hosts = None if arguments.hosts is None else _hosts_to_ask(arguments)
        if arguments.remote:
            return _show_remote(arguments, section, container, output)
        with Spinner(output, "Reading the model"):
            details = container.use_cases.show_model()(arguments.model, recalculate_hash=arguments.recalc_hash)
        verdict = estimate_memory(details.description, container.adapters.memory_probe(), cache=cache)
        if arguments.recalc_hash and not output.as_json:
            output.note("The content hash is recorded anew; the workspace is clean.")
        if arguments.format_report:
            return _report_formats(details, verdict, arguments.recalc_hash, container, output)
        spread = None
        if hosts is not None:
            with Spinner(output, "Asking the hosts"):
                spread = container.use_cases.diagnose_hosts().spread(hosts, details.description)
        if output.as_json:
            data = model_json.model_details(details, section, verdict, arguments.recalc_hash)
            output.document("show", data if spread is None else {**data, **model_json.spread(spread)})
            return DONE
        name = details.description.handle.alias
        if name is not None:
            values = settings_edit.values_text(context.settings.file.entries[name])
            output.line(printable(f"Name: {name} ({values})"))
        output.text(tables.details_text(details, section, container.adapters.clock().now(), verdict))
        if spread is not None:
            output.text(tables.spread_text(spread, output.width))
        return DONE


def _hosts_to_ask(arguments: argparse.Namespace) -> tuple[RankHost, ...]:
    """Return the hosts in the file of ``--hosts``.

    Raises:
        UsageError: A flag is given that does not go with ``--hosts``.
        ValidationError: See ``hosts_of_file``.
    """
    for flag in ("remote", "files", "config", "format_report", "kv_bits", "kv_scheme", "kv_group_size"):
        if getattr(arguments, flag):
            option = flag.replace("_", "-")
            raise UsageError(f"--hosts and --{option} exclude each other", hint="Leave one of them out.")
    return hosts_of_file("--hosts", arguments.hosts).hosts


def _show_remote(arguments: argparse.Namespace, section: str, container: "Container", output: Output) -> int:
    from mlxk.entrypoints.cli.render import remote_models  # noqa: PLC0415

    for flag in ("recalc_hash", "format_report", "kv_bits", "kv_scheme", "kv_group_size"):
        if getattr(arguments, flag):
            option = flag.replace("_", "-")
            raise UsageError(
                f"--{option} works on a model that is here, not with --remote", hint="Leave one of the two out."
            )
    if container.adapters.built_in_models().find(arguments.model) is not None:
        raise ValidationError(
            f"'{arguments.model}' comes with the program, so the hub is not asked",
            hint=f"Show it: mlxk show {arguments.model}",
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


class HealthCommand:
    """``mlxk health [MODEL]``: checks that the files of models are complete and valid."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the optional model."""
        add_model_argument(parser, optional=True)
        parser.add_argument(
            "--deep", action="store_true", help="read every byte and compare it with the recorded digests"
        )

    def execute(self, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
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
