"""The supervisor: owns the listening sockets and keeps a worker running behind them.

A worker that dies is replaced while its successor's clients wait in the sockets' queue, so that nobody is refused. The
first signal lets the worker finish what it does, the second hurries it, the third kills it.
"""

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

import attrs

from mlxk.application.ports.event_log import EventLog
from mlxk.domain.errors import ExecutionError, MlxkError
from mlxk.entrypoints.http import control
from mlxk.entrypoints.server_settings import ServerSettings

WORKER = (sys.executable, "-P", "-m", "mlxk.entrypoints.http.worker")
"""The worker's command line; ``-P`` keeps files of the working directory from passing for modules."""

GRACE_SECONDS = 8.0
"""What a worker may take to end beyond the time its answers have."""

QUICK_SECONDS = 30.0
"""A worker that lived longer than this did not die of its start."""

MOST_QUICK_DEATHS = 5
"""Workers that may die quickly, one after the other, before the supervisor gives up."""

LONGEST_PAUSE = 5.0
"""Between two starts, seconds."""

KILLING_SIGNAL = 3
"""The one that waits for nothing any more."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@attrs.frozen
class Supervision:
    """What the supervisor works with."""

    log: Callable[[], EventLog]
    """Makes the log when there is something to say."""
    on_ready: Callable[[], None]
    """Called once, when the first worker is ready."""
    changed: Callable[[], bool] | None = None
    """Asked twice a second whether the worker is to be restarted for new source."""
    command: Sequence[str] = WORKER


class Supervisor:
    """Runs workers until told to stop. Used in the main thread, since it takes over its signals.

    Args:
        sockets: Listening; every worker inherits them.
        settings: What the workers are told.
        supervision: What the supervisor works with.
    """

    def __init__(self, sockets: Sequence[socket.socket], settings: ServerSettings, supervision: Supervision) -> None:
        self._sockets = sockets
        self._settings = settings
        self._with = supervision
        self._signals = 0
        self._passed_on = 0
        self._kill_at = float("inf")
        self._announced = False
        self._reloading = False
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)

    def run(self) -> int:
        """Supervise until a signal ends it, and return the exit status.

        Raises:
            MlxkError: What a worker reported that no new worker could do better.
            ExecutionError: Workers kept dying.
        """
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        wakeup = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        try:
            return self._supervise()
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._wake.close()
            self._woken.close()

    def _supervise(self) -> int:
        deaths = 0
        while True:
            began = time.monotonic()
            status = self._run_worker()
            if self._signals:
                return 0 if status == 0 else 1
            if self._reloading:
                self._reloading = False
                continue
            deaths = deaths + 1 if time.monotonic() - began < QUICK_SECONDS else 1
            if deaths > MOST_QUICK_DEATHS:
                raise ExecutionError(
                    f"The server's worker died {deaths} times within {QUICK_SECONDS:g} seconds of its start.",
                    hint="Its log, on standard error, says why.",
                )
            pause = min(0.1 * 2 ** (deaths - 1), LONGEST_PAUSE)
            self._with.log().error("the worker died and is restarted", logger="supervisor", status=status, pause=pause)
            self._sleep(pause)
            if self._signals:
                return 0

    def _run_worker(self) -> int:
        ours, theirs = socket.socketpair()
        inherited = [theirs.fileno(), *(each.fileno() for each in self._sockets)]
        with ours:
            with theirs:
                worker = subprocess.Popen(
                    [*self._with.command, *map(str, inherited)],
                    pass_fds=inherited,
                    stdin=subprocess.DEVNULL,
                    stdout=sys.stderr.fileno(),
                    start_new_session=True,  # Ctrl-C in the terminal reaches the supervisor only
                )
            control.send(ours, control.settings_message(self._settings))
            failure = self._watch(ours, worker)
        status = worker.wait()
        if failure is not None and not self._signals:  # Told to end, it may have failed over that.
            raise failure
        return status

    def _watch(self, connection: socket.socket, worker: "subprocess.Popen[bytes]") -> MlxkError | None:
        """Watch over a worker until it has gone; return what it reported that no new worker could do better."""
        failure = None
        with selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select(self._patience())}
                if self._woken in ready:
                    self._woken.recv(4096)
                if connection in ready:
                    message = control.receive(connection)
                    if message is None:
                        return failure
                    if "failure" in message:
                        failure = control.failure_of(message)
                    elif not self._announced:
                        self._announced = True
                        self._with.on_ready()
                self._look(worker)

    def _look(self, worker: "subprocess.Popen[bytes]") -> None:
        """Pass on the signals that came, also while the worker was being started, and kill one that takes too long."""
        while self._passed_on < self._signals:
            self._passed_on += 1
            worker.send_signal(signal.SIGTERM if self._passed_on < KILLING_SIGNAL else signal.SIGKILL)
        if time.monotonic() >= self._kill_at:
            worker.kill()
        elif self._with.changed is not None and not self._reloading and self._with.changed():
            self._reloading = True
            worker.send_signal(signal.SIGTERM)

    def _patience(self) -> float | None:
        if self._kill_at != float("inf"):
            return max(0.0, self._kill_at - time.monotonic())
        return None if self._with.changed is None else 0.5

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        waiting = self._settings.drain_seconds if self._signals == 1 else 0.0
        self._kill_at = min(self._kill_at, time.monotonic() + waiting + GRACE_SECONDS)

    def _sleep(self, seconds: float) -> None:
        """Wait, or less when a signal comes."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            selector.select(seconds)


def source_watch(directory: str) -> Callable[[], bool]:
    """Return what tells whether a Python file below a directory has changed since it was asked last."""

    def newest() -> float:
        return max(
            (
                os.stat(os.path.join(folder, name)).st_mtime
                for folder, _, names in os.walk(directory, followlinks=True)
                for name in names
                if name.endswith(".py")
            ),
            default=0.0,
        )

    seen = [newest()]

    def changed() -> bool:
        seen.append(newest())
        return seen.pop(0) != seen[0]

    return changed
