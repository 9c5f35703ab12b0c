"""``mlxk clone MODEL [TARGET]``: an editable copy of a model."""

import argparse

from mlxk.application.use_cases.clone_model import CloneRequest
from mlxk.domain.errors import InterruptedRunError
from mlxk.entrypoints.cli.command import CommandContext, add_model_argument
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import Output, confirmation
from mlxk.entrypoints.cli.progress import PausedWhileAsking, SpinnerBetweenBars
from mlxk.entrypoints.cli.render import operations


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, the target and how to copy."""
    add_model_argument(parser)
    parser.add_argument("target", nargs="?", metavar="TARGET", help="a directory; MLXK_WORKSPACE_HOME when left out")
    parser.add_argument("--branch", metavar="NAME", help="a branch, tag or commit, as if it stood after '@'")
    parser.add_argument("--no-health-check", action="store_true", help="copy an incomplete or damaged model too")
    parser.add_argument("--force-resume", action="store_true", help="complete a partial model without asking")
    parser.add_argument("-y", "--yes", action="store_true", help="answer every question with yes")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Copy the model and print where the copy is; progress goes to standard error."""
    clone = context.build(context.settings).use_cases.clone_model()
    request = CloneRequest(
        arguments.model,
        arguments.target,
        arguments.branch,
        check_health=not arguments.no_health_check,
        force_resume=arguments.force_resume,
    )
    asked = confirmation(output, yes=arguments.yes)
    try:
        with SpinnerBetweenBars(output, "Reading the model", quiet=arguments.quiet) as progress:
            result = clone(request, progress, PausedWhileAsking(asked, progress))
    except KeyboardInterrupt:
        raise InterruptedRunError(
            "interrupted; what is done is kept", hint="Run the same command again, with --force-resume, to continue."
        ) from None
    if output.as_json:
        output.document("clone", operations.clone_json(result))
    else:
        output.text(operations.clone_text(result, quiet=arguments.quiet))
    return DONE
