"""Models of the hub and its cache: ``search``, ``recommend``, ``pull``, ``outdated``, ``rm``, ``du`` and ``prune``."""

import argparse

from mlxk.application.use_cases.browse_hub import DEFAULT_RESULTS
from mlxk.application.use_cases.cache_upkeep import EVERY_KIND, PruneRequest
from mlxk.application.use_cases.pull_model import PullRequest, PullStatus
from mlxk.application.use_cases.remove_models import RemoveRequest
from mlxk.domain.errors import InterruptedRunError, ValidationError
from mlxk.domain.hub import Purpose, mlx_first
from mlxk.domain.models.disk_usage import WasteKind
from mlxk.domain.models.model import ModelDescription, ModelType
from mlxk.entrypoints.cli.command import CommandContext, add_cached_pattern, complete_models, model_reference
from mlxk.entrypoints.cli.fetching import fetch
from mlxk.entrypoints.cli.output import DONE, Output, confirmation
from mlxk.entrypoints.cli.progress import PausedWhileAsking, Spinner, SpinnerBetweenBars
from mlxk.entrypoints.cli.render import disk_space, operations, remote_models
from mlxk.entrypoints.wording import model_reason


class SearchCommand:
    """``mlxk search TERMS``: models on the hub."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the terms and the limits."""
        parser.add_argument("words", nargs="+", metavar="TERMS", help="words of the names of models, such as: llama 3b")
        parser.add_argument(
            "--limit", type=int, default=DEFAULT_RESULTS, metavar="N", help=f"most models (default: {DEFAULT_RESULTS})"
        )
        parser.add_argument("--mlx", action="store_true", help="only models that are made for MLX")

    def execute(self, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
        """Ask the hub, and print a table or JSON."""
        search = context.build(context.settings).use_cases.search_models()
        terms = " ".join(arguments.words)
        with Spinner(output, "Searching the hub"):
            results = search(terms, arguments.limit, mlx_only=arguments.mlx)
        if output.as_json:
            output.document("search", remote_models.search_json(terms, results))
            return DONE
        if not results:
            output.note(f"The hub has no model with '{terms}' in its name.")
            return DONE
        output.table(remote_models.search_table(results, output.width))
        output.note(remote_models.next_step(results))
        return DONE


_ONLINE_RESULTS = 10
"""Most results of a search of the hub for a purpose."""


class RecommendCommand:
    """``mlxk recommend``: models to begin with, from a list that comes with the program."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the purpose and whether to ask the hub."""
        parser.add_argument(
            "--for",
            dest="purpose",
            choices=[each.value for each in Purpose],
            help="what the model is for (all of these)",
        )
        parser.add_argument(
            "--online", action="store_true", help="ask the hub, too: its most downloaded models for MLX"
        )

    def execute(self, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
        """Print a table or JSON; with ``--online`` also models of the hub that are not in the list."""
        container = context.build(context.settings)
        recommend, purpose = container.use_cases.recommend_models(), None
        if arguments.purpose:
            purpose = Purpose(arguments.purpose)
        recommendations = recommend(purpose)
        online = None
        if arguments.online:
            listed_names = {each.model.name for each in recommendations}
            search = container.use_cases.search_models()
            with Spinner(output, "Searching the hub"):
                results = [
                    each for terms in recommend.terms(purpose) for each in search(terms, _ONLINE_RESULTS, mlx_only=True)
                ]
            by_name = {each.model.name: each for each in results if each.model.name not in listed_names}
            online = [by_name[model.name] for model in mlx_first(each.model for each in by_name.values())]
        reading = container.adapters.memory_probe().read()
        if output.as_json:
            output.document("recommend", remote_models.recommend_json(purpose, reading, recommendations, online))
            return DONE
        output.table(remote_models.recommend_table(recommendations, output.width))
        for line in remote_models.recommend_notes(reading, recommendations):
            output.note(line)
        if online:
            output.line()
            output.table(remote_models.search_table(online, output.width))
        return DONE


class PullCommand:
    """``mlxk pull MODEL``: fetch a model from the hub into the cache."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the model and how to fetch it."""
        parser.add_argument(
            "model",
            metavar="MODEL",
            type=model_reference,
            help="ORG/NAME, NAME of mlx-community, either with @REVISION, or the address of the model's page",
        )
        parser.add_argument("--force-resume", action="store_true", help="complete a partial model without asking")
        parser.add_argument("-y", "--yes", action="store_true", help="answer every question with yes")
        parser.add_argument("--dry-run", action="store_true", help="print what would be fetched, and fetch nothing")

    def execute(self, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
        """Fetch the model and print the result; progress goes to standard error."""
        use_cases = context.build(context.settings).use_cases
        request = PullRequest(arguments.model, arguments.force_resume, arguments.dry_run)
        result = fetch(use_cases, request, output, yes=arguments.yes)
        if output.as_json:
            output.document("pull", operations.pull_json(result))
            return DONE
        if result.warning and request.dry_run:
            output.note(f"Warning: {result.warning}")
        output.text(operations.pull_text(result))
        if result.handle and result.status in {PullStatus.SUCCESS, PullStatus.ALREADY_EXISTS}:
            output.note(_usage_note(use_cases.describe_model()(result.handle)))
        return DONE


_USES = {
    ModelType.AUDIO: "run {} --audio FILE",
    ModelType.EMBEDDING: "embed {} TEXT",
    ModelType.RERANKER: 'rerank {} "QUERY" FILE',
    ModelType.VOICE: "say {} TEXT",
}
"""The commands of models that do not answer text with text; ``{}`` is the name."""


def _usage_note(description: ModelDescription) -> str:
    """Return the command that uses a pulled model, or why the model cannot run here."""
    name = description.handle.label
    if not description.runnable:
        return f"It cannot run here: {model_reason(description)}"
    return f"Use it: mlxk {_USES.get(description.model_type, 'run {}').format(name)}"


class RmCommand:
    """``mlxk rm MODEL``: remove models from the cache."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare what to remove."""
        action = parser.add_argument(
            "model",
            metavar="MODEL",
            type=model_reference,
            help="a cached model, NAME@REVISION, a part of a name, or a pattern such as 'test-*'",
        )
        complete_models(action, cached_only=True)
        parser.add_argument("-y", "--yes", action="store_true", help="do not ask for confirmation")
        parser.add_argument(
            "-f", "--force", action="store_true", help="do not ask, and have servers unload the model first"
        )
        parser.add_argument("--dry-run", action="store_true", help="print what would be removed, and remove nothing")

    def execute(self, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
        """Remove models and print which; ask for confirmation when the name is not exact."""
        entry = context.settings.file.entries.get(arguments.model)
        if entry is not None:
            raise ValidationError(
                f"'{arguments.model}' is your name for {entry['model']}",
                hint=f"Remove the name: mlxk alias rm {arguments.model}. Remove the model: mlxk rm {entry['model']}",
            )
        remove = context.build(context.settings).use_cases.remove_model()
        request = RemoveRequest(arguments.model, arguments.force, arguments.dry_run)
        try:
            with SpinnerBetweenBars(output, "Removing") as progress:
                confirm = PausedWhileAsking(confirmation(output, yes=arguments.yes), progress)
                result = remove(request, confirm, progress)
        except KeyboardInterrupt:
            raise InterruptedRunError("interrupted", hint=f"Continue: mlxk rm {arguments.model}") from None
        if output.as_json:
            output.document("rm", operations.remove_json(result))
        else:
            output.text(operations.remove_text(result))
        return DONE


class OutdatedCommand:
    """``mlxk outdated``: cached models of which the hub has a newer revision."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the pattern."""
        add_cached_pattern(parser)
        parser.add_argument("-a", "--all", action="store_true", help="also models that are current")

    def execute(self, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
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


class DuCommand:
    """``mlxk du``: what cached models take on the disk."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the pattern."""
        add_cached_pattern(parser)
        parser.add_argument("--revisions", action="store_true", help="list the revisions of each model as well")

    def execute(self, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
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
        output.text(disk_space.usage_summary(usage, free, arguments.pattern))
        return DONE


class PruneCommand:
    """``mlxk prune``: remove what nothing uses from the cache."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
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

    def execute(self, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
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
