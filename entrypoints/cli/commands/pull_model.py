"""``mlxk pull MODEL``: fetch a model from the hub into the cache."""

import argparse

from mlxk.application.use_cases.pull_model import PullRequest, PullStatus
from mlxk.domain.models.model import ModelDescription, ModelType
from mlxk.entrypoints.cli.command import CommandContext, model_reference
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.fetching import fetch
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.render import operations
from mlxk.entrypoints.wording import model_reason


def add_arguments(parser: argparse.ArgumentParser) -> None:
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


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
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
        output.note(next_step(use_cases.describe_model()(result.handle)))
    return DONE


def next_step(description: ModelDescription) -> str:
    """Return the command that uses a model that was pulled, or why none does."""
    name = description.handle.label
    if not description.runnable:
        return f"It cannot run here: {model_reason(description)}"
    if description.model_type is ModelType.AUDIO:
        return f"Use it: mlxk run {name} --audio FILE"
    if description.model_type is ModelType.EMBEDDING:
        return f"Use it: mlxk embed {name} TEXT"
    return f"Use it: mlxk run {name}"
