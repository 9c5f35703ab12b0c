"""The grammar of the command line: flags in, a namespace out. Raises instead of exiting, so that the door answers."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from mlxk import __version__
from mlxk.domain.errors import UsageError
from mlxk.entrypoints.cli.commands import COMMANDS

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

DESCRIPTION = "The knife for local models on Apple's MLX: list, check, pull, run, serve, edit, repair and publish."


_DASHED = ("ignored explicit argument", "expected one argument")
"""What argparse says of a text that starts with a dash, among other things."""


class HelpWanted(Exception):  # noqa: N818 - no error
    """The user asked for help, which is this exception's text; argparse itself would lose that it cannot be written."""


class Parser(argparse.ArgumentParser):
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


def build_parser(only: str | None = None) -> Parser:
    """Build the parser. ``--json`` is accepted before and after the command.

    Args:
        only: The one command whose flags are needed; the others are known by name. None means all of them.
    """
    parser = Parser(prog="mlxk", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    commands = parser.add_subparsers(
        prog=parser.prog, dest="command", metavar="COMMAND", title="commands", parser_class=Parser
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


def parse(parser: Parser, arguments: Sequence[str]) -> argparse.Namespace:
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
