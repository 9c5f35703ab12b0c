"""``mlxk prune``: remove what nothing uses from the cache."""

import argparse

from mlxk.application.use_cases.cache_upkeep import EVERY_KIND, PruneRequest
from mlxk.domain.errors import InterruptedRunError
from mlxk.domain.models.footprint import WasteKind
from mlxk.entrypoints.cli.command import CommandContext, add_cached_pattern
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import Output, confirmation
from mlxk.entrypoints.cli.progress import PausedWhileAsking, Spinner
from mlxk.entrypoints.cli.render import disk_space


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what to remove."""
    add_cached_pattern(parser)
    parser.add_argument(
        "--only",
        action="append",
        choices=[kind.value for kind in WasteKind],
        help="only old revisions, partial downloads or orphaned files; may be repeated",
    )
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="only show what would be removed")


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Show what nothing uses, ask, remove it, and print what went."""
    prune = context.build(context.settings).use_cases.prune_cache()
    kinds = frozenset(map(WasteKind, arguments.only)) if arguments.only else EVERY_KIND
    request = PruneRequest(arguments.pattern, kinds, arguments.dry_run)
    try:
        with Spinner(output, "Reading the cache") as spinner:
            result = prune(request, PausedWhileAsking(confirmation(output, yes=arguments.yes), spinner))
    except KeyboardInterrupt:
        raise InterruptedRunError("interrupted", hint="Continue: mlxk prune") from None
    if output.as_json:
        output.document("prune", disk_space.prune_json(result))
    else:
        output.text(disk_space.prune_text(result))
    return DONE
