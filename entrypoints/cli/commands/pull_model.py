"""``mlxk pull MODEL``: fetch a model from the hub into the cache."""

import argparse

from mlxk.application.use_cases.pull_model import PullRequest
from mlxk.domain.errors import InterruptedRunError
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import Output, confirmation
from mlxk.entrypoints.cli.progress import transfer_progress
from mlxk.entrypoints.cli.references import model_reference
from mlxk.entrypoints.cli.render import operations


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
    pull = context.build(context.settings).use_cases.pull_model()
    request = PullRequest(arguments.model, arguments.force_resume, arguments.dry_run)
    try:
        result = pull(request, transfer_progress(output), confirmation(output, yes=arguments.yes))
    except KeyboardInterrupt:
        raise InterruptedRunError(
            "interrupted; what arrived is kept", hint=f"Continue: mlxk pull {arguments.model} --force-resume"
        ) from None
    if output.as_json:
        output.document("pull", operations.pull_json(result))
        return DONE
    if result.warning and request.dry_run:
        output.note(f"Warning: {result.warning}")
    output.text(operations.pull_text(result))
    return DONE
