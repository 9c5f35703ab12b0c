"""``mlxk push FOLDER ORG/NAME``: publish a workspace on the hub."""

import argparse

from mlxk.application.use_cases.push_model import PushExtent, PushRequest, Visibility
from mlxk.domain.errors import InterruptedRunError
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.progress import SpinnerBetweenBars
from mlxk.entrypoints.cli.render import operations
from mlxk.entrypoints.wording import health_reason

DEFAULT_MESSAGE = "Upload with mlxk"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the folder, the repository and how to publish."""
    parser.add_argument("local_dir", metavar="FOLDER", help="a directory, or a workspace of the workspace home")
    parser.add_argument("repo_id", metavar="ORG/NAME", help="the repository on the hub")
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument("--private", action="store_true", help="refuse to push to a public repository")
    visibility.add_argument("--public", action="store_true", help="allow a public repository")
    parser.add_argument("--create", action="store_true", help="create a missing repository or branch")
    parser.add_argument("--branch", metavar="NAME", default="main", help="the branch to commit to (main)")
    parser.add_argument("--commit", metavar="TEXT", default=DEFAULT_MESSAGE, help="the message of the commit")
    parser.add_argument("--delete", action="store_true", help="delete files that are not in the folder")
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--check-only", action="store_true", help="check the folder, without asking the hub")
    extent.add_argument("--dry-run", action="store_true", help="print what would change, and change nothing")
    parser.add_argument(
        "--allow",
        metavar="FILE",
        action="append",
        default=[],
        help="push a file that looks secret",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="name every file, and show the hub client's log")


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Publish the folder and print what changed; progress goes to standard error."""
    extent = PushExtent.DRY_RUN if arguments.dry_run else PushExtent.ALL
    visibility = Visibility.PUBLIC if arguments.public else Visibility.PRIVATE if arguments.private else None
    request = PushRequest(
        folder=arguments.local_dir,
        name=arguments.repo_id,
        visibility=visibility,
        branch=arguments.branch,
        message=arguments.commit.strip() or DEFAULT_MESSAGE,
        create=arguments.create,
        delete=arguments.delete,
        extent=PushExtent.CHECK_ONLY if arguments.check_only else extent,
        allowed=tuple(arguments.allow),
    )
    push = context.build(context.settings).use_cases.push_model()
    try:
        with SpinnerBetweenBars(output, "Comparing the folder with the hub") as progress:
            result = push(request, progress)
    except KeyboardInterrupt:
        raise InterruptedRunError(
            "interrupted; a commit is made whole or not at all",
            hint="Run the same command again: large files that arrived are not sent twice.",
        ) from None
    if output.as_json:
        output.document("push", operations.push_json(result))
        return DONE
    if not result.health.healthy:
        output.note(f"Warning: the folder is not a whole model: {health_reason(result.health)}")
    output.text(operations.push_text(result, verbose=arguments.verbose))
    return DONE
