"""The program: hands the doors to the command line, and answers ``--version`` before anything is imported.

The command line, the pipe and the server do not know each other; this module is the one place that knows all three.
"""

import sys
from typing import TYPE_CHECKING

from mlxk import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlxk.entrypoints.container import Container
    from mlxk.entrypoints.server_settings import ServerAddress, ServerSettings
    from mlxk.entrypoints.settings import Settings


def main(argv: list[str] | None = None) -> int:
    """Run the ``mlxk`` command and return its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments == ["--version"]:
        print(f"mlxk {__version__}")  # noqa: T201 - the fast path has no output sink yet
        return 0
    from mlxk.domain.errors import ValidationError
    from mlxk.entrypoints.cli.door import Door
    from mlxk.entrypoints.cli.program import refuse, run
    from mlxk.entrypoints.settings import read_settings

    try:
        settings = read_settings()
    except ValidationError as error:
        return refuse(arguments, error)
    return run(arguments, Door(settings=settings, build=_container, read_pipe=_read_pipe, serve=_serve))


def run_main() -> int:
    """Run the ``mlx-run`` command, which is ``mlxk run``."""
    return main(["run", *sys.argv[1:]])


def _container(settings: "Settings") -> "Container":
    from mlxk.entrypoints.container import build

    return build(settings)


def _read_pipe(words: str) -> str:
    from mlxk.entrypoints.pipe.prompt import read_prompt

    return read_prompt(sys.stdin.buffer, sys.stderr, words)


def _serve(settings: "Settings", server: "ServerSettings", announce: "Callable[[ServerAddress], None]") -> int:
    from mlxk.entrypoints.container import build
    from mlxk.entrypoints.http.serve import serve

    return serve(settings, server, announce, build)
