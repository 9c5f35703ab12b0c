"""The commands that find models to fetch: ``search`` and ``recommend``."""

import argparse

from mlxk.application.use_cases.browse_hub import DEFAULT_RESULTS
from mlxk.domain.hub import Purpose, mlx_first
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.output import DONE, Output
from mlxk.entrypoints.cli.progress import Spinner
from mlxk.entrypoints.cli.render import remote_models


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


ONLINE_RESULTS = 10


"""Most models that the hub is asked for, each purpose."""


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
        """Print a table or JSON, and with ``--online`` what the hub has beside it."""
        container = context.build(context.settings)
        recommend, purpose = container.use_cases.recommend_models(), None
        if arguments.purpose:
            purpose = Purpose(arguments.purpose)
        found = recommend(purpose)
        online = None
        if arguments.online:
            known = {each.model.name for each in found}
            search = container.use_cases.search_models()
            with Spinner(output, "Searching the hub"):
                results = [
                    each for terms in recommend.terms(purpose) for each in search(terms, ONLINE_RESULTS, mlx_only=True)
                ]
            by_name = {each.model.name: each for each in results if each.model.name not in known}
            online = [by_name[model.name] for model in mlx_first(each.model for each in by_name.values())]
        reading = container.adapters.memory_probe().read()
        if output.as_json:
            output.document("recommend", remote_models.recommend_json(purpose, reading, found, online))
            return DONE
        output.table(remote_models.recommend_table(found, output.width))
        for line in remote_models.recommend_notes(reading, found):
            output.note(line)
        if online:
            output.line()
            output.table(remote_models.search_table(online, output.width))
        return DONE
