"""Asking for a yes at the terminal; elsewhere, and beside JSON, nobody is there to answer."""

import sys
from typing import TextIO

from mlxk.application.ports.confirmation import Confirmation
from mlxk.entrypoints.cli.output import Output

YES, NO = frozenset({"y", "yes"}), frozenset({"n", "no"})


class TerminalConfirmation(Confirmation):
    """Asks on standard error and reads standard input, when both are terminals.

    Args:
        output: Says whether standard error is a terminal.
        stdin: Where answers come from; standard input when left out.
    """

    def __init__(self, output: Output, stdin: TextIO | None = None) -> None:
        self._output = output
        self._stdin = sys.stdin if stdin is None else stdin

    def ask(self, facts: tuple[str, ...], question: str, *, default: bool) -> bool | None:
        """Ask until the answer is a yes, a no or empty; an end of input is a no."""
        if not (self._output.talkative and self._stdin.isatty()):
            return None
        for fact in facts:
            self._output.note(fact)
        while True:
            self._output.prompt(f"{question} [{'Y/n' if default else 'y/N'}]: ")
            line = self._line()
            answer = line.strip().lower()
            if not line or answer in NO:
                return False
            if answer in YES or (not answer and default):
                return True
            if not answer:
                return default

    def _line(self) -> str:
        """Read an answer; where the user ends the input or interrupts, what is said next begins on a new line."""
        line = ""
        try:
            line = self._stdin.readline()
        finally:
            if not line:
                self._output.note("")
        return line
