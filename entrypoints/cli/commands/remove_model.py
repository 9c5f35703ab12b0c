"""``mlxk rm MODEL``: remove models from the cache."""

import argparse

from mlxk.application.use_cases.remove_models import RemoveRequest
from mlxk.domain.errors import InterruptedRunError, ValidationError
from mlxk.entrypoints.cli.command import CommandContext, complete_models, model_reference
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import Output, confirmation
from mlxk.entrypoints.cli.progress import PausedWhileAsking, SpinnerBetweenBars
from mlxk.entrypoints.cli.render import operations


def add_arguments(parser: argparse.ArgumentParser) -> None:
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


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Remove models and print which; ask for confirmation when the name is not exact."""
    own = context.settings.file.entries.get(arguments.model)
    if own is not None:
        raise ValidationError(
            f"'{arguments.model}' is your name for {own['model']}",
            hint=f"Remove the name: mlxk alias rm {arguments.model}. Remove the model: mlxk rm {own['model']}",
        )
    remove = context.build(context.settings).use_cases.remove_model()
    request = RemoveRequest(arguments.model, arguments.force, arguments.dry_run)
    try:
        with SpinnerBetweenBars(output, "Removing") as progress:
            asked = PausedWhileAsking(confirmation(output, yes=arguments.yes), progress)
            result = remove(request, asked, progress)
    except KeyboardInterrupt:
        raise InterruptedRunError("interrupted", hint=f"Continue: mlxk rm {arguments.model}") from None
    if output.as_json:
        output.document("rm", operations.remove_json(result))
    else:
        output.text(operations.remove_text(result))
    return DONE
