"""The end of a supervised server: the program that its supervisor becomes to tell people what failed.

Run as ``python -m mlxk.entrypoints.server_end mlxk ARGUMENT… FAILURE``: the command line that started the server, and
the failure as its worker reported it.
"""

import sys
from collections.abc import Sequence

from mlxk.entrypoints.cli.commands import verb_of
from mlxk.entrypoints.cli.program import refuse
from mlxk.entrypoints.http.control import failure_of
from mlxk.entrypoints.settings import read_settings


def command_line(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return how to run this program for a server started with some arguments, without the failure."""
    return (sys.executable, "-P", "-m", __name__, "mlxk", *arguments)


def main() -> int:
    """Tell the failure as the command line that started the server would, and return its exit status."""
    _, *arguments, failure = sys.argv[1:]
    return refuse(arguments, failure_of(failure), verb_of(arguments), color=read_settings().color)


if __name__ == "__main__":
    sys.exit(main())
