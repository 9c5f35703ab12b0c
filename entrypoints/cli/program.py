"""Runs one command line: the table of commands, parsing, execution, and the output of errors.

A command's module is imported only when the command is used.
"""

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple, cast

from mlxk import __version__
from mlxk.domain.errors import InternalError, InterruptedRunError, MlxkError, StorageError, UsageError
from mlxk.entrypoints.cli.command import Command, CommandContext, complete_models
from mlxk.entrypoints.cli.command_line_parser import (
    CommandLineParser,
    HelpRequested,
    epilog,
    normalized,
    own_words,
    typed_flags,
)
from mlxk.entrypoints.cli.output import CLOSED_PIPE, DONE, USAGE, Output, discard, exit_status
from mlxk.entrypoints.cli.settings_of_command import unknown_variables, use_settings_file


class CommandEntry(NamedTuple):
    """One entry of the table; ``command`` is ``MODULE``, or ``MODULE:CLASS`` for a module with several commands."""

    command: str
    help: str
    aliases: tuple[str, ...] = ()

    def load(self) -> Command:
        """Import the command's module, and return the command."""
        module, _, name = self.command.partition(":")
        imported = import_module(f"mlxk.entrypoints.cli.commands.{module}")
        return cast("Command", getattr(imported, name)() if name else imported)


COMMANDS = {
    "list": CommandEntry("inspect_models:ListCommand", "list models in the cache, in workspaces and built in", ("ls",)),
    "show": CommandEntry("inspect_models:ShowCommand", "show one model in detail"),
    "health": CommandEntry("inspect_models:HealthCommand", "check whether the files of models are whole"),
    "doctor": CommandEntry("doctor", "check the installation and this machine, and name what mends them"),
    "run": CommandEntry("run_model", "ask a model, or chat with it"),
    "chats": CommandEntry("chats", "list and remove the chats that were kept"),
    "bench": CommandEntry("bench", "measure how fast a model is here, or a server under load"),
    "monitor": CommandEntry("monitor", "sample memory, processor and servers, around a command or by themselves"),
    "top": CommandEntry("top", "show what servers do now: models, queue, tokens a second, memory"),
    "search": CommandEntry("hub_and_cache:SearchCommand", "find models on the hub, those for MLX first"),
    "recommend": CommandEntry("hub_and_cache:RecommendCommand", "models to begin with that fit this machine"),
    "pull": CommandEntry("hub_and_cache:PullCommand", "fetch a model from the hub"),
    "outdated": CommandEntry(
        "hub_and_cache:OutdatedCommand", "find cached models of which the hub has a newer revision"
    ),
    "rm": CommandEntry("hub_and_cache:RmCommand", "remove models from the cache", ("remove",)),
    "du": CommandEntry("hub_and_cache:DuCommand", "show what cached models take on the disk, and what nothing uses"),
    "prune": CommandEntry("hub_and_cache:PruneCommand", "remove old revisions, partial downloads and orphaned files"),
    "clone": CommandEntry("workspaces:CloneCommand", "make an editable copy of a model"),
    "convert": CommandEntry("workspaces:ConvertCommand", "quantize a model, or repair its index, into a new workspace"),
    "tune": CommandEntry("tuning:TuneCommand", "train a model on examples; what it learns is a new workspace"),
    "fuse": CommandEntry("tuning:FuseCommand", "build an adapter into its model: a new, whole workspace"),
    "eval": CommandEntry("tuning:EvalCommand", "measure a model on examples: loss, and answers that are exact"),
    "push": CommandEntry("workspaces:PushCommand", "publish a workspace on the hub"),
    "serve": CommandEntry("serve_models", "serve models to clients of OpenAI, Anthropic and Ollama", ("server",)),
    "launch": CommandEntry("launch_agent", "start a coding agent on a model of this machine"),
    "ps": CommandEntry("running_servers:PsCommand", "list your running servers and the models they have in memory"),
    "stop": CommandEntry("running_servers:StopCommand", "have servers unload a model, or stop"),
    "logs": CommandEntry("running_servers:LogsCommand", "print the log of a server in the background"),
    "service": CommandEntry("service", "have a server start with your session"),
    "embed": CommandEntry("embed_text", "turn texts into vectors"),
    "rerank": CommandEntry("rerank", "order documents by their relevance to a query"),
    "say": CommandEntry("say", "speak a text"),
    "embed-serve": CommandEntry("serve_models:EmbedServeCommand", "serve the vectors of one model"),
    "alias": CommandEntry("model_names:AliasCommand", "give a model a name of your own"),
    "profile": CommandEntry("model_names:ProfileCommand", "give a model a name with settings of its own"),
    "config": CommandEntry("configuration", "show or edit the settings file, and say where it is"),
    "schema": CommandEntry("schema", "print the JSON Schema of a command's output"),
    "completion": CommandEntry("completion", "print the completion script of a shell"),
}
"""All commands, in the order of the help."""


FORWARDING_COMMANDS = frozenset({"launch", "service", "monitor"})
"""Commands that start another program, and pass everything after ``--`` to it."""


HELP = frozenset({"-h", "--help"})


def command_of(arguments: Sequence[str]) -> str | None:
    """Return the command that the first word of a command line names; None where it names none, or asks for help."""
    names = {alias: name for name, entry in COMMANDS.items() for alias in (name, *entry.aliases)}
    first = next((word for word in arguments if word in HELP or not word.startswith("-")), None)
    return names.get(first) if first is not None else None


JSON_API_SPEC_VERSION = "0.5.0"

DESCRIPTION = "The knife for local models on Apple's MLX: list, check, pull, run, serve, edit, repair and publish."


def build_parser(only: str | None = None) -> CommandLineParser:
    """Build the parser. ``--json`` is accepted before and after the command.

    Args:
        only: The command to load; the parser knows no other. With "" it knows the names of all commands and loads none;
            with None it loads all.
    """
    parser = CommandLineParser(prog="mlxk", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("-V", "--version", action="store_true", help="print the version and exit")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    commands = parser.add_subparsers(
        prog=parser.prog, dest="command", metavar="COMMAND", title="commands", parser_class=CommandLineParser
    )
    known = {only: COMMANDS[only]} if only else COMMANDS
    for name, entry in known.items():
        sub = commands.add_parser(
            name,
            aliases=entry.aliases,
            help=entry.help,
            description=entry.help,
            epilog=epilog(name),
            allow_abbrev=False,
        )
        if only is None or only == name:
            command = entry.load()
            command.add_arguments(sub)
            for action in sub._actions:
                if action.metavar == "MODEL" and not hasattr(action, "completer"):
                    complete_models(action)
            sub.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")
            sub.set_defaults(command=name, execute=command.execute, parser=sub)
    parser.epilog = f"mlxk {__version__}. MODEL is a name, a unique part of one, NAME@REVISION, a path, or 'demo'."
    return parser


LATE_LISTS = ("words", "names")
LATE_VALUES = ("text", "target")
"""Optional positionals, of several words or of one, which argparse misses when they stand after a flag."""


def parse(parser: CommandLineParser, arguments: Sequence[str], *, forwards: bool = False) -> argparse.Namespace:
    """Parse a command line; optional positionals may stand before, between and after flags.

    argparse returns positionals after a flag as unknown words when others stood before it, and with them ``--``.

    Args:
        parser: From ``build_parser``.
        arguments: The command line.
        forwards: Whether everything after ``--`` goes to another program, a further ``--`` included.

    Raises:
        UsageError: A flag is unknown, a value is malformed, or something is missing.
    """
    if forwards:
        own = own_words(arguments)
        parsed = parse(parser, own)
        parsed.words = [*parsed.words, *arguments[len(own) + 1 :]]
        return parsed
    parsed, unknown = parser.parse_known_args(arguments)
    split = unknown.index("--") if "--" in unknown else len(unknown)
    flags = [word for word in unknown[:split] if word.startswith("-") and word != "-"]
    words = [*unknown[:split], *unknown[split + 1 :]]
    late_list = next((name for name in LATE_LISTS if hasattr(parsed, name)), None)
    late_value = next((name for name in LATE_VALUES if getattr(parsed, name, "") is None), None)
    if words and not flags and late_list:
        setattr(parsed, late_list, [*getattr(parsed, late_list), *words])
    elif len(words) == 1 and not flags and late_value:
        setattr(parsed, late_value, words[0])
    elif words or flags:
        getattr(parsed, "parser", parser).refuse(flags or words)
    if missing := getattr(parsed, "missing", lambda _: None)(parsed):
        parsed.parser.error(f"the following arguments are required: {missing}")
    return parsed


def run(arguments: Sequence[str], context: CommandContext) -> int:
    """Run one command and return its exit status."""
    output = Output(as_json="--json" in own_words(arguments), color=context.settings.color)
    command: str | None = None
    try:
        line = context.settings.completion_line
        arguments = normalized(arguments)
        words = arguments if line is None else line.split()[1 : None if line.endswith(" ") else -1]
        parser = build_parser(command_of(words) or "")
        if line is not None:
            _complete(parser)
        try:
            parsed = parse(parser, arguments, forwards=command_of(words) in FORWARDING_COMMANDS)
        except HelpRequested as request:
            output.text(str(request))
            return DONE
        command, parsed.typed = parsed.command, tuple(arguments)
        output.typed_flags = typed_flags(getattr(parsed, "parser", parser), own_words(arguments))
        use_settings_file(parsed, context.settings, output)
        if parsed.version:
            return _print_version(context, output)
        if command is None:
            if output.as_json:
                raise UsageError("no command given", hint="Try 'mlxk --help'.")
            output.text(parser.format_help())
            return USAGE
        _print_unknown_variables(context, output)
        status: int = parsed.execute(parsed, context, output)
    except BrokenPipeError:
        return _closed_pipe()
    except KeyboardInterrupt:
        return _fail(output, command, InterruptedRunError("interrupted"))
    except MlxkError as error:
        return _fail(output, command, error)
    except Exception as error:  # noqa: BLE001 - no traceback reaches a user
        return _internal_error(output, command, error, context.settings.log_level == "debug")
    return status


def _print_unknown_variables(context: CommandContext, output: Output) -> None:
    for note in unknown_variables(context.settings.set_variables):
        output.note(note)


def _print_version(context: CommandContext, output: Output) -> int:
    """Print the version; as JSON with that of the JSON API, and facts about the system."""
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
    """Print an error raised outside of a command, such as one of a variable; return the exit status.

    Args:
        arguments: The command line; with ``--json`` the error is printed as JSON.
        error: The error.
        command: The name of the command, where known.
        color: Whether to use colours on a terminal.
    """
    return _fail(Output(as_json="--json" in own_words(arguments), color=color), command, error)


def _complete(parser: argparse.ArgumentParser) -> None:
    """Print completions for the shell and exit."""
    import argcomplete  # noqa: PLC0415 - only completion needs it

    argcomplete.autocomplete(parser, always_complete_options=False)


def _fail(output: Output, command: str | None, error: MlxkError) -> int:
    if output.undelivered:
        discard(sys.stdout)
    try:
        output.failure(command, error)
    except BrokenPipeError:
        return _closed_pipe()
    except StorageError as unwritable:
        return _fail(output, command, unwritable)
    return exit_status(error)


def _internal_error(output: Output, command: str | None, error: Exception, verbose: bool) -> int:
    if isinstance(error, FileNotFoundError) and _is_working_directory_gone():
        gone = StorageError("the working directory does not exist any more", hint="Go to another one with cd.")
        return _fail(output, command, gone)
    if verbose:
        sys.excepthook(type(error), error, error.__traceback__)
    return _fail(output, command, internal_error(error))


def _is_working_directory_gone() -> bool:
    """Whether the working directory was removed, after which no relative path can be resolved."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def internal_error(error: Exception) -> InternalError:
    """Return the error that reports an unexpected exception to the user."""
    return InternalError(
        f"{type(error).__name__}: {error}",
        hint="This is a fault of mlxk. MLXK2_LOG_LEVEL=debug shows where; please report it.",
    )


def _closed_pipe() -> int:
    """Return the exit status of a process whose reader closed the pipe; nothing is printed."""
    discard(sys.stdout)
    return CLOSED_PIPE
