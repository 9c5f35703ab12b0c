"""What a command is, and the context it runs in: settings, the container, and the other entrypoints."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import attrs

from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.settings import ServerAddress, ServerSettings, Settings

if TYPE_CHECKING:
    from mlxk.entrypoints.container import Container


Announcement = Callable[[ServerAddress], str]
"""Returns the line to print on standard output when the server is ready."""

Serve = Callable[[Settings, ServerSettings, Announcement], int]
"""Serves until a signal ends it, and returns the exit status."""


@attrs.frozen
class CommandContext:
    """The world as a command sees it. Nothing here is built before it is asked for."""

    settings: Settings
    build: Callable[[Settings], "Container"]
    """Builds the container; called at most once a command."""
    read_pipe: Callable[[str, Callable[[str], None]], str]
    """Reads standard input and joins it with the words of the prompt."""
    serve: Serve


class Command(Protocol):
    """A module with these two names is a command."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare positionals and flags."""

    def execute(self, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
        """Do the work and return the exit status.

        Raises:
            MlxkError: Any failure; the program turns it into an answer.
        """
