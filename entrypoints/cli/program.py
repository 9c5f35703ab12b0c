"""The command line, in three steps: parse the arguments, build the output, execute the command.

Every failure ends here: as one line and a hint on standard error, or as a JSON envelope on standard output; never as a
traceback. ``MLXK2_LOG_LEVEL=debug`` shows the traceback of a fault of ours.
"""

import argparse
import sys
from collections.abc import Sequence

from mlxk.domain.errors import InternalError, InterruptedRunError, MlxkError, StorageError, UsageError
from mlxk.entrypoints.cli.commands import verb_of, version
from mlxk.entrypoints.cli.door import Door
from mlxk.entrypoints.cli.exit_status import CLOSED_PIPE, DONE, USAGE, exit_status
from mlxk.entrypoints.cli.output import Output, discard
from mlxk.entrypoints.cli.parser import HelpWanted, build_parser, parse


def run(arguments: Sequence[str], door: Door) -> int:
    """Run one command and return its exit status."""
    output = Output(as_json="--json" in arguments, color=door.settings.color)
    command: str | None = None
    try:
        parser = build_parser(None if door.settings.completing else verb_of(list(arguments)) or "")
        if door.settings.completing:
            _complete(parser)
        try:
            parsed = parse(parser, arguments)
        except HelpWanted as wanted:
            output.text(str(wanted))
            return DONE
        command = parsed.command
        if parsed.version:
            return version.execute(parsed, door, output)
        if command is None:
            if output.as_json:
                raise UsageError("no command given", hint="Try 'mlxk --help'.")
            output.text(parser.format_help())
            return USAGE
        status: int = parsed.execute(parsed, door, output)
    except BrokenPipeError:
        return _closed_pipe()
    except KeyboardInterrupt:
        return _fail(output, command, InterruptedRunError("interrupted"))
    except MlxkError as error:
        return _fail(output, command, error)
    except Exception as fault:  # noqa: BLE001 - the door: no traceback reaches a user
        return _fault(output, command, fault, door.settings.log_level == "debug")
    return status


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
