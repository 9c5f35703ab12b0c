"""What a command module looks like."""

import argparse
from typing import Protocol

from mlxk.entrypoints.cli.door import Door
from mlxk.entrypoints.cli.output import Output


class Command(Protocol):
    """A module with these two names is a command."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare positionals and flags."""

    def execute(self, arguments: argparse.Namespace, door: Door, output: Output) -> int:
        """Do the work and return the exit status.

        Raises:
            MlxkError: Any failure; the program turns it into an answer.
        """
