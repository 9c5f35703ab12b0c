"""The argument parser: argparse, with errors that name the nearest command, flag or value.

Command lines as other programs take them are put into the form of this one first.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from mlxk.domain.errors import UsageError
from mlxk.entrypoints.cli import examples
from mlxk.entrypoints.cli.suggestions import FLAGS_MEANT, MEANT, closest, did_you_mean

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

MODEL_FLAGS = ("-m", "--model")


def own_words(arguments: Sequence[str]) -> list[str]:
    """Return a command line up to ``--``, after which nothing is a flag of this program."""
    return list(arguments[: arguments.index("--")] if "--" in arguments else arguments)


def in_our_form(arguments: Sequence[str]) -> list[str]:
    """Return a command line in which ``help`` and ``version`` are flags, and the model of ``run -m`` is its first word.

    argparse cannot have a first word that a flag makes optional.
    """
    match [word for word in arguments if word != "--json"]:
        case ["help", *rest]:
            return [*rest[:1], "--help"]
        case ["version"]:
            return ["--version", *(word for word in arguments if word == "--json")]
        case ["run", *_]:
            return _with_the_model_first(list(arguments))
    return list(arguments)


def _with_the_model_first(arguments: list[str]) -> list[str]:
    end = len(own_words(arguments))
    for index, word in enumerate(arguments[:end]):
        flag, separator, value = word.partition("=")
        if flag in MODEL_FLAGS and (separator or index + 1 < end):
            taken = 1 if separator else 2
            model = value if separator else arguments[index + 1]
            rest = arguments[:index] + arguments[index + taken :]
            return ["run", model, *rest[1:]] if rest[0] == "run" else [rest[0], "run", model, *rest[2:]]
    return arguments


_DASHED = ("ignored explicit argument", "expected one argument")
"""Messages of argparse for a value that starts with a dash, among other mistakes."""

_MISSING = "the following arguments are required"


class HelpRequested(Exception):  # noqa: N818 - no error
    """Carries the text of ``--help``, which argparse itself would print without reporting a failed write."""


class HelpFormat(argparse.HelpFormatter):
    """Wraps every text but the examples, which stand a line each."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(examples.TITLE):
            return text
        return super()._fill_text(text, width, indent)


class CommandLineParser(argparse.ArgumentParser):
    """An argument parser that raises ``UsageError``."""

    def __init__(self, **options: object) -> None:
        super().__init__(formatter_class=HelpFormat, **options)  # type: ignore[arg-type]  # those of argparse

    def error(self, message: str) -> NoReturn:
        """Raise a message of argparse, with a hint."""
        hint = f"Try '{self.prog} --help'."
        if self.prog.endswith(" run") and any(each in message for each in _DASHED):
            hint += (
                " A prompt that starts with a dash stands after --; a value that does, after =, as in --system=TEXT."
            )
        known = examples.EXAMPLES.get(self.prog.rpartition(" ")[2])
        if known and _MISSING in message:
            hint = f"Try '{self.prog} --help', or for example: {known[0]}"
        raise UsageError(message, hint=hint)

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Raise the error about words that are neither flags of this command nor values of any, with the nearest flags.

        Args:
            unknown: Flags that do not exist; where all exist, words that are too many.
        """
        flags = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        known = self._option_string_actions
        early = [flag for flag in flags if flag in known]
        if early:
            command = self.prog.rpartition(" ")[2]
            raise UsageError(
                f"{early[0]} is a flag of {command} and stands after it", hint=f"Write: {self.prog} {early[0]}"
            )
        found = [name for flag in flags for name in closest(flag, known, FLAGS_MEANT)]
        hint = f"{did_you_mean(found)} '{self.prog} --help' lists the flags.".lstrip()
        if self.prog.endswith(" launch") and flags:
            hint = f"Flags of the agent stand after --: {self.prog} AGENT -- {flags[0]}"
        if not flags:
            hint = f"Text of several words needs quotes. Try '{self.prog} --help'."
        raise UsageError(f"unrecognized arguments: {' '.join(unknown)}", hint=hint)

    def print_help(self, file: "SupportsWrite[str] | None" = None) -> NoReturn:
        """Raise the help text."""
        raise HelpRequested(self.format_help())

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """Refuse a command or a value that is none of the choices, with the nearest ones."""
        choices = [] if action.choices is None else [str(each) for each in action.choices]
        if action.choices is None or value in action.choices:
            return
        if isinstance(action, argparse._SubParsersAction):
            names = list(action.choices.items())
            first = {id(parser): name for name, parser in reversed(names)}  # aliases follow their command
            found = (first[id(action.choices[name])] for name in closest(str(value), choices, MEANT))
            near = did_you_mean(dict.fromkeys(found))
            raise UsageError(
                f"there is no command '{value}'", hint=f"{near} '{self.prog} --help' lists the commands.".lstrip()
            )
        name = "/".join(action.option_strings) or str(action.metavar or action.dest)
        near = did_you_mean(closest(str(value), choices))
        raise UsageError(
            f"argument {name}: '{value}' is not one of {', '.join(choices)}", hint=near or f"Try '{self.prog} --help'."
        )
