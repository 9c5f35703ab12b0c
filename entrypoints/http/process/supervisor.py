"""The supervisor: the parent process, which owns the listening sockets and restarts a worker that dies.

While a worker restarts, connections wait in the backlog of the sockets, and no client is refused. The first signal
makes the worker drain, the second aborts its requests, the third kills it. The parent starts no threads and imports
neither the web framework nor a model library.

A worker reads its orders as a line of JSON from standard input, which stays open as long as the parent lives. Each line
that it writes to standard output is a report: it is ready, or why it cannot serve.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import attrs

from mlxk.domain.errors import ExecutionError, InterruptedRunError, MlxkError
from mlxk.entrypoints.settings import ServerSettings
from mlxk.entrypoints.wording import command_line_error, error_of

WORKER = (sys.executable, "-P", "-m", "mlxk.entrypoints.http.process.worker")
"""Command line of a worker; ``-P`` keeps modules of the working directory out."""

GRACE_SECONDS = 8.0
"""Time for a worker to exit after its requests have ended."""

QUICK_SECONDS = 30.0
"""A worker that dies within this time after its start counts as a quick death."""

MAX_QUICK_DEATHS = 5
"""Successive quick deaths before the supervisor gives up."""

MAX_PAUSE_SECONDS = 5.0
"""Longest pause between two starts."""

KILLING_SIGNAL = 3
"""Which received signal kills the worker: the third."""

SOURCE_POLL_SECONDS = 0.5
"""Pause between two checks of the source for changes."""

CANNOT_RUN = 127
"""Exit status of a worker whose program cannot be executed, as in a shell."""


def stopping_signals() -> Sequence[signal.Signals]:
    """Return the signals that stop a server; without SIGHUP when it is ignored, as under ``nohup``."""
    hangup = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
    return (signal.SIGINT, signal.SIGTERM, *hangup)


@attrs.frozen
class WorkerOrders:
    """What a worker reads at its start."""

    settings: ServerSettings
    died: int | None = None
    """Exit status of the previous worker, if it died."""
    owner: int | None = None
    """Id of the process to signal to stop the server: the supervisor; None for the worker itself."""

    def to_line(self) -> bytes:
        """Return the orders as a line of JSON."""
        return json.dumps(attrs.asdict(self)).encode() + b"\n"

    @classmethod
    def of_line(cls, line: bytes) -> "WorkerOrders":
        """Return the orders in a line of JSON."""
        document: dict[str, Any] = json.loads(line)
        values = document["settings"].items()
        settings: dict[str, Any] = {key: tuple(each) if isinstance(each, list) else each for key, each in values}
        return cls(ServerSettings(**settings), document["died"], document["owner"])


def report_line(error: MlxkError | None) -> bytes:
    """Return the report of a worker as a line of JSON: an error in the wording of the CLI, or None when it is ready."""
    if error is None:
        return b"null\n"
    message, hint = command_line_error(error)
    document = {"message": message, "hint": hint, "matches": error.matches, "detail": error.detail}
    return json.dumps({"code": error.code, **document}).encode() + b"\n"


def reported_error(line: bytes) -> MlxkError | None:
    """Return the error of a report; None when the worker is ready."""
    document: dict[str, Any] | None = json.loads(line)
    return None if document is None else error_of(document["code"], document)


class Supervisor:
    """Runs workers until a signal or an error ends the server.

    Args:
        settings: The operator's settings, passed to each worker.
        sockets: Listening sockets, inherited by each worker.
        announce: Called once, when the first worker is ready.
        source: A directory whose changes restart the worker; None to watch nothing.
        command: Command line of a worker; the descriptors of the sockets are appended.
    """

    def __init__(
        self,
        settings: ServerSettings,
        sockets: Sequence[socket.socket],
        announce: Callable[[], None],
        source: str | None = None,
        command: Sequence[str] = WORKER,
    ) -> None:
        self._settings = settings
        self._descriptors = [each.fileno() for each in sockets]
        self._announce = announce
        self._source = source
        self._newest = _newest_change(source) if source else 0.0
        self._command = command
        self._announced = False
        self._reloading = False
        self._signals = 0
        self._forwarded = 0
        self._kill_at: float | None = None
        self._error: Exception | None = None
        self._signal_pipe = -1
        self._lifeline = [sys.stdin.fileno()] if settings.until_eof else []
        """Standard input, if the server stops at its end."""

    def run(self) -> int:
        """Run workers and return the exit status.

        Signal handlers stay in place afterwards, so that a late Ctrl-C does not interrupt the program's end.

        Raises:
            InterruptedRunError: A signal came before the first worker was ready.
            ExecutionError: Workers cannot be started, or die again and again.
            MlxkError: A worker reported why it cannot serve.
            BrokenPipeError: The announcement has no reader.
        """
        with self._signals_counted():
            deaths = 0
            died: int | None = None
            while True:
                began = time.monotonic()
                status = self._run_worker(died)
                if self._error is not None:
                    raise self._error
                if self._signals:
                    return self._stopped(status)
                died = None if self._reloading else status
                if self._reloading:
                    self._reloading = False
                    continue
                deaths = deaths + 1 if time.monotonic() - began < QUICK_SECONDS else 1
                if deaths > MAX_QUICK_DEATHS:
                    raise ExecutionError(
                        f"The server's worker died {deaths} times within {QUICK_SECONDS:g} seconds of its start.",
                        hint="Its log, on standard error, says why.",
                    )
                self._wait([], min(0.1 * 2 ** (deaths - 1), MAX_PAUSE_SECONDS))
                if self._signals:
                    return self._stopped(0)

    def _stopped(self, status: int) -> int:
        """Return the exit status after a signal; a worker that had no handlers yet ends with -SIGTERM, no failure."""
        if not self._announced:
            raise InterruptedRunError("stopped before the server was ready")
        return 0 if status in {0, -signal.SIGTERM} else 1

    @contextmanager
    def _signals_counted(self) -> Iterator[None]:
        """Count stopping signals; each wakes ``select`` through a pipe."""
        self._signal_pipe, wake = os.pipe()
        os.set_blocking(self._signal_pipe, False)
        os.set_blocking(wake, False)
        stopping = stopping_signals()
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in stopping:
            signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping)
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            os.close(wake)
            os.close(self._signal_pipe)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        self._shorten_deadline(self._settings.drain_seconds if self._signals == 1 else 0.0)

    def _shorten_deadline(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds + GRACE_SECONDS
        self._kill_at = deadline if self._kill_at is None else min(self._kill_at, deadline)

    def _run_worker(self, died: int | None) -> int:
        """Run one worker until it exits; return its exit status, negative for a signal."""
        try:
            # In a session of its own the worker does not receive the terminal's Ctrl-C.
            worker = subprocess.Popen(
                [*self._command, *map(str, self._descriptors)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=self._descriptors,
                start_new_session=True,
                bufsize=0,
            )
        except (FileNotFoundError, PermissionError) as error:
            with suppress(OSError):  # standard error may have no reader
                sys.stderr.write(f"{self._command[0]} cannot be run: {error.strerror}\n")
            return CANNOT_RUN
        except OSError as error:
            raise ExecutionError(
                f"no worker can be started: {error.strerror}", hint="See which limits the system sets."
            ) from error
        with worker:
            self._send_orders(worker, died)
            self._watch(worker)
        return worker.returncode

    def _send_orders(self, worker: "subprocess.Popen[bytes]", died: int | None) -> None:
        assert worker.stdin is not None
        try:
            write_all(worker.stdin.fileno(), WorkerOrders(self._settings, died, os.getpid()).to_line())
        except BrokenPipeError:
            return  # the worker died, which ``_watch`` notices

    def _watch(self, worker: "subprocess.Popen[bytes]") -> None:
        """Handle reports, signals and changes of the source until the worker exits, which closes its output."""
        assert worker.stdout is not None
        reports, partial = worker.stdout.fileno(), b""
        while True:
            if reports in self._wait([reports], self._timeout()):
                data = os.read(reports, 65536)
                if not data:
                    return
                *lines, partial = (partial + data).split(b"\n")
                for line in lines:
                    self._on_report(line)
            self._signal_worker(worker)

    def _wait(self, descriptors: list[int], seconds: float | None) -> list[int]:
        """Wait for input, a signal, the end of standard input, or a timeout; return the descriptors that are ready."""
        ready = select.select([*descriptors, self._signal_pipe, *self._lifeline], [], [], seconds)[0]
        if self._signal_pipe in ready:
            os.read(self._signal_pipe, 4096)
        for each in set(self._lifeline) & set(ready):
            if not os.read(each, 4096):
                self._lifeline = []
                for _ in range(2):  # abort: the client that waits for answers has gone
                    self._on_signal(signal.SIGTERM, None)
        return ready

    def _on_report(self, line: bytes) -> None:
        self._error = reported_error(line)
        if self._error is None and not self._announced:
            self._announced = True
            try:
                self._announce()
            except (MlxkError, BrokenPipeError) as error:
                self._error = error
                self._on_signal(signal.SIGTERM, None)

    def _signal_worker(self, worker: "subprocess.Popen[bytes]") -> None:
        """Forward signals received since the last call; kill a late worker, and stop one whose source has changed."""
        while self._forwarded < self._signals:
            self._forwarded += 1
            worker.send_signal(signal.SIGTERM if self._forwarded < KILLING_SIGNAL else signal.SIGKILL)
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            worker.kill()
        elif self._source and not self._reloading and self._source_changed(self._source):
            self._reloading = True
            worker.send_signal(signal.SIGTERM)

    def _source_changed(self, source: str) -> bool:
        before, self._newest = self._newest, _newest_change(source)
        return self._newest != before

    def _timeout(self) -> float | None:
        if self._kill_at is not None:
            return max(0.0, self._kill_at - time.monotonic())
        return SOURCE_POLL_SECONDS if self._source else None


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes to a descriptor, without a buffer.

    Raises:
        OSError: The descriptor cannot be written.
    """
    while data:
        data = data[os.write(descriptor, data) :]


def _newest_change(directory: str) -> float:
    """Return the latest modification time of a Python file below a directory."""
    return max(
        (
            os.stat(os.path.join(folder, name)).st_mtime
            for folder, _, names in os.walk(directory, followlinks=True)
            for name in names
            if name.endswith(".py")
        ),
        default=0.0,
    )
