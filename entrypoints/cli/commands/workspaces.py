"""The commands that make and publish workspaces: ``clone``, ``convert`` and ``push``."""

import argparse

from mlxk.application.use_cases.clone_model import CloneRequest
from mlxk.application.use_cases.convert_model import ConvertMode, ConvertRequest
from mlxk.application.use_cases.push_model import PushExtent, PushRequest, Visibility
from mlxk.domain.errors import InterruptedRunError, UsageError
from mlxk.entrypoints.cli.command import CommandContext, add_model_argument, complete_models, model_reference
from mlxk.entrypoints.cli.output import DONE, Output, confirmation
from mlxk.entrypoints.cli.progress import PausedWhileAsking, SpinnerBetweenBars
from mlxk.entrypoints.cli.render import operations
from mlxk.entrypoints.wording import health_reason


class CloneCommand:
    """``mlxk clone MODEL [TARGET]``: an editable copy of a model."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the model, the target and how to copy."""
        add_model_argument(parser)
        parser.add_argument(
            "target", nargs="?", metavar="TARGET", help="a directory; MLXK_WORKSPACE_HOME when left out"
        )
        parser.add_argument("--branch", metavar="NAME", help="a branch, tag or commit, as if it stood after '@'")
        parser.add_argument("--no-health-check", action="store_true", help="copy an incomplete or damaged model too")
        parser.add_argument("--force-resume", action="store_true", help="complete a partial model without asking")
        parser.add_argument("-y", "--yes", action="store_true", help="answer every question with yes")
        parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")

    def execute(self, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
        """Copy the model and print where the copy is; progress goes to standard error."""
        clone = context.build(context.settings).use_cases.clone_model()
        request = CloneRequest(
            arguments.model,
            arguments.target,
            arguments.branch,
            check_health=not arguments.no_health_check,
            force_resume=arguments.force_resume,
        )
        confirm = confirmation(output, yes=arguments.yes)
        try:
            with SpinnerBetweenBars(output, "Reading the model", quiet=arguments.quiet) as progress:
                result = clone(request, progress, PausedWhileAsking(confirm, progress))
        except KeyboardInterrupt:
            raise InterruptedRunError(
                "interrupted; what is done is kept",
                hint="Run the same command again, with --force-resume, to continue.",
            ) from None
        if output.as_json:
            output.document("clone", operations.clone_json(result))
        else:
            output.text(operations.clone_text(result, quiet=arguments.quiet))
        return DONE


class ConvertCommand:
    """``mlxk convert SOURCE TARGET``: quantize, dequantize, or repair the index of a model, into a new workspace."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare source, target and mode."""
        source = parser.add_argument("source", metavar="SOURCE", type=model_reference, help="a model; it is only read")
        complete_models(source)
        parser.add_argument(
            "target", metavar="TARGET", help="a directory that does not exist, or a bare name in the home"
        )
        mode = parser.add_mutually_exclusive_group()
        mode.add_argument("--quantize", metavar="BITS", type=int, help="bits per weight: 2, 3, 4, 6 or 8")
        mode.add_argument("--dequantize", action="store_true", help="back to full precision")
        mode.add_argument("--repair-index", action="store_true", help="write a new index of the weight files present")
        parser.add_argument(
            "--q-group-size", metavar="N", type=int, help="weights that share a scale: 32, 64 or 128 (64)"
        )
        parser.add_argument(
            "--skip-health", action="store_true", help="keep the result even if it fails the health check"
        )

    def execute(self, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
        """Convert the model and print where the result is; progress goes to standard error."""
        if arguments.quantize is not None:
            mode = ConvertMode.QUANTIZE
        elif arguments.dequantize:
            mode = ConvertMode.DEQUANTIZE
        elif arguments.repair_index:
            mode = ConvertMode.REPAIR_INDEX
        else:
            raise UsageError("Must specify conversion mode (--repair-index, --quantize N or --dequantize)")
        convert = context.build(context.settings).use_cases.convert_model()
        request = ConvertRequest(
            arguments.source,
            arguments.target,
            mode,
            bits=arguments.quantize,
            group_size=arguments.q_group_size,
            check_health=not arguments.skip_health,
        )
        try:
            with SpinnerBetweenBars(output, "Reading the model") as progress:
                result = convert(request, progress)
        except KeyboardInterrupt:
            raise InterruptedRunError("interrupted; nothing was made", hint="Run the same command again.") from None
        if output.as_json:
            output.document("convert", operations.convert_json(result))
            return DONE
        if result.warning:
            output.note(f"Warning: {result.warning}")
        output.text(operations.convert_text(result))
        return DONE


DEFAULT_MESSAGE = "Upload with mlxk"


class PushCommand:
    """``mlxk push FOLDER ORG/NAME``: publish a workspace on the hub."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
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
        parser.add_argument(
            "-v", "--verbose", action="store_true", help="name every file, and show the hub client's log"
        )

    def execute(self, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
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
