"""The command line in three steps: parse the arguments, build the output, execute the command.

Owns the argument parser, which raises instead of exiting so that every error is rendered in one place.
"""

import argparse
import platform
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from mlxk import __version__
from mlxk.domain.errors import InternalError, InterruptedRunError, MlxkError, StorageError, UsageError
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.commands import COMMANDS, verb_of
from mlxk.entrypoints.cli.exit_status import CLOSED_PIPE, DONE, USAGE, exit_status
from mlxk.entrypoints.cli.output import Output, discard

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


JSON_API_SPEC_VERSION = "0.3.0"

DESCRIPTION = "The knife for local models on Apple's MLX: list, check, pull, run, serve, edit, repair and publish."


_DASHED = ("ignored explicit argument", "expected one argument")
"""What argparse says of a text that starts with a dash, among other things."""


class HelpWanted(Exception):  # noqa: N818 - no error
    """The user asked for help, which is this exception's text; argparse itself would lose that it cannot be written."""


class CommandLineParser(argparse.ArgumentParser):
    """An argument parser whose mistakes are raised as ``UsageError``."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found wrong, with the usage as the hint."""
        hint = f"Try '{self.prog} --help'."
        if self.prog.endswith(" run") and any(said in message for said in _DASHED):
            hint += (
                " A prompt that starts with a dash stands after --; a value that does, after =, as in --system=TEXT."
            )
        raise UsageError(message, hint=hint)

    def print_help(self, file: "SupportsWrite[str] | None" = None) -> NoReturn:
        """Raise the help, whoever was to print it."""
        raise HelpWanted(self.format_help())


def build_parser(only: str | None = None) -> CommandLineParser:
    """Build the parser. ``--json`` is accepted before and after the command.

    Args:
        only: The one command whose flags are needed; the others are known by name. None means all of them.
    """
    parser = CommandLineParser(prog="mlxk", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    commands = parser.add_subparsers(
        prog=parser.prog, dest="command", metavar="COMMAND", title="commands", parser_class=CommandLineParser
    )
    for name, verb in COMMANDS.items():
        sub = commands.add_parser(name, aliases=verb.aliases, help=verb.help, description=verb.help, allow_abbrev=False)
        if only is None or only == name:
            command = verb.load()
            command.add_arguments(sub)
            sub.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")
            sub.set_defaults(command=name, execute=command.execute)
    parser.epilog = f"mlxk {__version__}. MODEL is a name, a unique part of one, NAME@REVISION, a path, or 'demo'."
    return parser


def parse(parser: CommandLineParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; the words of a prompt, or a text, may stand before, between and after flags.

    argparse gives up on words that follow a flag once it has seen the first ones, and hands them back as unknown; with
    them ``--``, after which nothing is a flag.

    Raises:
        UsageError: A flag is unknown, a value is malformed, or something is missing.
    """
    parsed, rest = parser.parse_known_args(arguments)
    split = rest.index("--") if "--" in rest else len(rest)
    stray = [word for word in rest[:split] if word.startswith("-") and word != "-"]
    rest = [*rest[:split], *rest[split + 1 :]]
    if rest and not stray and hasattr(parsed, "words"):
        parsed.words = [*parsed.words, *rest]
    elif len(rest) == 1 and not stray and getattr(parsed, "text", "") is None:
        parsed.text = rest[0]
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(stray or rest)}")
    return parsed


def run(arguments: Sequence[str], context: CommandContext) -> int:
    """Run one command and return its exit status."""
    output = Output(as_json="--json" in arguments, color=context.settings.color)
    command: str | None = None
    try:
        line = context.settings.completion_line
        words = list(arguments) if line is None else line.split()[1:]
        parser = build_parser(verb_of(words) or "")
        if line is not None:
            _complete(parser)
        try:
            parsed = parse(parser, arguments)
        except HelpWanted as wanted:
            output.text(str(wanted))
            return DONE
        command = parsed.command
        if parsed.version:
            return _print_version(context, output)
        if command is None:
            if output.as_json:
                raise UsageError("no command given", hint="Try 'mlxk --help'.")
            output.text(parser.format_help())
            return USAGE
        status: int = parsed.execute(parsed, context, output)
    except BrokenPipeError:
        return _closed_pipe()
    except KeyboardInterrupt:
        return _fail(output, command, InterruptedRunError("interrupted"))
    except MlxkError as error:
        return _fail(output, command, error)
    except Exception as fault:  # noqa: BLE001 - the door: no traceback reaches a user
        return _fault(output, command, fault, context.settings.log_level == "debug")
    return status


def _print_version(context: CommandContext, output: Output) -> int:
    """Print the version of the program; as JSON also that of its JSON API, and the system."""
    if not output.as_json:
        output.line(f"mlxk {__version__}")
        return DONE
    reading = context.build(context.settings).adapters.memory_probe().read()
    output.document(
        "version",
        {
            "cli_version": __version__,
            "json_api_spec_version": JSON_API_SPEC_VERSION,
            "system": {
                "memory_total_bytes": reading.total if reading else None,
                "platform": f"{platform.system()}-{platform.machine()}",
                "python": platform.python_version(),
            },
        },
    )
    return DONE


def refuse(arguments: Sequence[str], error: MlxkError, command: str | None = None, *, color: bool = False) -> int:
    """Answer a failure that came before the command line was read, such as a wrong environment variable, or long after.

    Args:
        arguments: The command line.
        error: What failed.
        command: What the command line asked for, where that is known.
        color: Whether colours are welcome.
    """
    return _fail(Output(as_json="--json" in arguments, color=color), command, error)


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell's question for completions and leave; the shell asks by a variable, not by a flag."""
    import argcomplete

    argcomplete.autocomplete(parser, always_complete_options=False)


def _fail(output: Output, command: str | None, error: MlxkError) -> int:
    if output.undelivered:
        discard(sys.stdout)
    try:
        output.failure(command, error)
    except BrokenPipeError:
        return _closed_pipe()
    except StorageError as undelivered:
        return _fail(output, command, undelivered)
    return exit_status(error)


def _fault(output: Output, command: str | None, fault: Exception, verbose: bool) -> int:
    if verbose:
        sys.excepthook(type(fault), fault, fault.__traceback__)
    return _fail(
        output,
        command,
        InternalError(
            f"{type(fault).__name__}: {fault}",
            hint="This is a fault of mlxk. MLXK2_LOG_LEVEL=debug shows where; please report it.",
        ),
    )


def _closed_pipe() -> int:
    """Leave in silence: the reader has gone."""
    discard(sys.stdout)
    return CLOSED_PIPE
