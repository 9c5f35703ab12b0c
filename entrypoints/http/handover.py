"""How ``mlxk serve`` becomes the supervisor: the same process, without what it no longer needs.

Owns the order in which the supervisor and its workers are told things on their command lines.
"""

import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import attrs

from mlxk.domain.errors import ExecutionError
from mlxk.entrypoints.http import supervisor
from mlxk.entrypoints.settings import ServerSettings

WORKER = (sys.executable, "-P", "-m", "mlxk.entrypoints.http.worker")
"""The worker's command line; ``-P`` keeps files of the working directory from passing for modules."""

SUPERVISOR = (
    *(sys.executable, "-I", "-S", "-c"),
    "import sys; sys.path.append(sys.argv[1]); from supervisor import main; main(sys.argv[2:])",
    os.path.dirname(supervisor.__file__),
)
"""The supervisor's command line, in an interpreter that sees no variables and, but for this one module, nothing beyond
the standard library. The module is imported since a program given by its file name is compiled every time, and what
that leaves behind would stay for as long as the server runs."""


@attrs.frozen
class Orders:
    """What a worker is told on its command line."""

    died: int | None
    """The exit status of the worker before, if it died."""
    report: int
    """The descriptor to report to; it is closed with the process."""
    life: int
    """The descriptor that ends with the supervisor."""
    settings: int
    """The descriptor of the file with the settings; shared with the other workers, so its position must stay."""
    sockets: Sequence[int]


def orders_of(arguments: Sequence[str]) -> Orders:
    """Return what the last arguments of a worker's command line say."""
    died, report, life, settings, *sockets = arguments
    return Orders(int(died) if died else None, int(report), int(life), int(settings), [*map(int, sockets)])


@contextmanager
def held_signals() -> Iterator[None]:
    """Hold back the signals that stop a server, until somebody has taken them over or the block is left.

    They stay held when the block turns into another program.
    """
    stopping = supervisor.stopping_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
    try:
        yield
    finally:
        release_signals()


def release_signals() -> None:
    """Let the signals through that were held back."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, supervisor.stopping_signals())


def become_supervisor(
    sockets: Sequence[socket.socket],
    settings: ServerSettings,
    ready: str,
    *,
    end: Sequence[str],
    source: str = "",
    worker: Sequence[str] = WORKER,
) -> NoReturn:
    """Turn this process into a supervisor.

    Args:
        sockets: Listening.
        settings: What the workers are told.
        ready: What to say on standard output when the first worker is ready; ends with a line end.
        end: The command line of the program that tells people about a failure; it gets the failure as one more.
        source: A directory whose changes restart the worker; empty for none.
        worker: The command line of a worker.

    Raises:
        ExecutionError: The system refuses.
    """
    told = settings_file(settings)
    descriptors = [each.fileno() for each in sockets]
    for descriptor in (told, *descriptors):
        os.set_inheritable(descriptor, True)
    words = [str(settings.drain_seconds), str(told), ",".join(map(str, descriptors)), ready, source]
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execv(sys.executable, [*SUPERVISOR, *words, *worker, supervisor.SEPARATOR, *end])
    except OSError as error:
        raise ExecutionError(f"The server's supervisor cannot be started: {error.strerror}.") from error


def settings_file(settings: ServerSettings) -> int:
    """Return the descriptor of a file with the settings; it has no name, since they hold keys."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("mlxk-settings")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    with open(descriptor, "w", encoding="utf-8", closefd=False) as file:
        json.dump(attrs.asdict(settings), file)
    return descriptor


def read_settings_file(descriptor: int) -> ServerSettings:
    """Return the settings in such a file, which stays as it is."""
    said: dict[str, Any] = json.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
    values: dict[str, Any] = {key: tuple(each) if isinstance(each, list) else each for key, each in said.items()}
    return ServerSettings(**values)
