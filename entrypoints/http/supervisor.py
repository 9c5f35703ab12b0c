"""The supervisor: keeps a worker running behind listening sockets, and does nothing else.

A worker that dies is replaced while its successor's clients wait in the sockets' queue, so that nobody is refused. The
first signal lets the worker finish what it does, the second hurries it, the third kills it.

It is a program of its own, run in an interpreter that has none of our packages: it lives as long as the server and
would hold their memory for nothing. So it imports only what costs next to nothing, and none of our modules.
``handover`` turns ``mlxk serve`` into it; in the end it turns into another program, which tells people why.
"""

import os
import select
import sys
import time

TYPE_CHECKING = False
"""Type checkers take it for true; ``typing`` is one of the modules that cost."""

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Sequence
    from types import FrameType
else:
    import _signal as signal  # The same functions and numbers; ``signal`` dresses them in enums, for 0.8 MiB.

READY = b"ready\n"
"""What a worker reports when it can answer; anything else is a failure that no new worker could do better, as JSON."""

SEPARATOR = "--"
"""Stands between the command line of a worker and that of the end."""

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

LOOK_SECONDS = 0.5
"""Between two looks at the source."""

CANNOT_RUN = 127
"""Exit status of a worker that could not even be started."""

NOBODY_READS = 141
"""Exit status when standard output is a pipe that nobody reads any more, as of any command of ours."""


def stopping_signals() -> "Sequence[signal.Signals]":
    """Return the signals that stop a server: all that end programs, but for a hangup that ``nohup`` has us ignore."""
    hangup = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
    return (signal.SIGINT, signal.SIGTERM, *hangup)


class Supervisor:
    """Runs workers until told to stop.

    Args:
        drain_seconds: How long answers in progress may take to finish.
        settings: The descriptor of the file with what the workers are told.
        sockets: Descriptors of the listening sockets.
        ready: What to say on standard output when the first worker is ready.
        source: The directory whose Python files are watched; empty for none.
        command: The command line of a worker, without the descriptors.
    """

    def __init__(
        self,
        drain_seconds: float,
        settings: int,
        sockets: "Sequence[int]",
        ready: str,
        source: str,
        command: "Sequence[str]",
    ) -> None:
        self._drain_seconds = drain_seconds
        self._settings = settings
        self._sockets = sockets
        self._ready = os.fsencode(ready)
        self._changed = source_watch(source) if source else None
        self._command = command
        self._signals = 0
        self._passed_on = 0
        self._kill_at = float("inf")
        self._announced = False
        self._unheard: OSError | None = None
        self._reloading = False
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wake, False)

    def run(self) -> tuple[int, str | None]:
        """Supervise until a signal or a failure ends it; return the exit status, or the failure to tell people."""
        stopping = stopping_signals()
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in stopping:
            signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping)
        deaths, died = 0, ""
        while True:
            began = time.monotonic()
            status, failure = self._run_worker(died)
            if isinstance(self._unheard, BrokenPipeError):
                return NOBODY_READS, None
            if self._unheard is not None:
                message = f"standard output cannot be written: {self._unheard.strerror}"
                return 1, failure_report("storage_error", message, "See whether the disk it goes to is full.")
            if self._signals:
                return self._stopped(status)
            if failure is not None:
                return 1, failure
            died = ""
            if self._reloading:
                self._reloading = False
                continue
            deaths = deaths + 1 if time.monotonic() - began < QUICK_SECONDS else 1
            if deaths > MOST_QUICK_DEATHS:
                message = f"The server's worker died {deaths} times within {QUICK_SECONDS:g} seconds of its start."
                return 1, failure_report("execution_error", message, "Its log, on standard error, says why.")
            pause = min(0.1 * 2 ** (deaths - 1), LONGEST_PAUSE)
            select.select([self._woken], [], [], pause)
            if self._signals:
                return self._stopped(0)
            died = str(status)

    def _stopped(self, status: int) -> tuple[int, str | None]:
        """Return the end after a signal; a worker that it ends was still starting, and had nothing in hand."""
        if not self._announced:
            return 1, failure_report("interrupted", "stopped before the server was ready", None)
        return (0 if status in {0, -signal.SIGTERM} else 1), None

    def _run_worker(self, died: str) -> tuple[int, str | None]:
        """Run one worker until it has gone; return its exit status and what it reported to have failed.

        Args:
            died: The exit status of the one before, for this one's log; empty unless it died.
        """
        heard, report = os.pipe()
        life, ours = os.pipe()
        passed = (report, life, self._settings, *self._sockets)
        worker = spawn([*self._command, died, *map(str, passed)], passed)
        os.close(report)
        os.close(life)
        try:
            failure = self._watch(heard, worker)
            return os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]), failure
        finally:
            os.close(heard)
            os.close(ours)

    def _watch(self, heard: int, worker: int) -> str | None:
        """Watch over a worker until it has gone; return what it reported to have failed."""
        said = b""
        while True:
            ready = select.select([heard, self._woken], [], [], self._patience())[0]
            if self._woken in ready:
                os.read(self._woken, 4096)
            if heard in ready:
                words = os.read(heard, 65536)
                if not words:
                    return said.decode() if said.endswith(b"\n") else None
                said += words
                if said == READY:
                    said = b""
                    self._announce()
            self._look(worker)

    def _announce(self) -> None:
        """Say once that the server is ready; stop it when that cannot be said."""
        rest = b"" if self._announced else self._ready
        self._announced = True
        try:
            while rest:
                rest = rest[os.write(sys.stdout.fileno(), rest) :]
        except OSError as error:
            self._unheard = error
            self._on_signal(signal.SIGTERM, None)

    def _look(self, worker: int) -> None:
        """Pass on the signals that came, also while the worker was being started, and kill one that takes too long."""
        while self._passed_on < self._signals:
            self._passed_on += 1
            os.kill(worker, signal.SIGTERM if self._passed_on < KILLING_SIGNAL else signal.SIGKILL)
        if time.monotonic() >= self._kill_at:
            os.kill(worker, signal.SIGKILL)
        elif self._changed is not None and not self._reloading and self._changed():
            self._reloading = True
            os.kill(worker, signal.SIGTERM)

    def _patience(self) -> float | None:
        if self._kill_at != float("inf"):
            return max(0.0, self._kill_at - time.monotonic())
        return None if self._changed is None else LOOK_SECONDS

    def _on_signal(self, number: int, frame: "FrameType | None") -> None:
        self._signals += 1
        waiting = self._drain_seconds if self._signals == 1 else 0.0
        self._kill_at = min(self._kill_at, time.monotonic() + waiting + GRACE_SECONDS)


def spawn(command: list[str], descriptors: "Sequence[int]") -> int:
    """Start a process and return its id.

    It inherits some descriptors, reads nothing, and prints to standard error. It has a session of its own, so that
    Ctrl-C in the terminal reaches the supervisor only.
    """
    stopping = stopping_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)  # One that came between fork and exec would be lost.
    process = os.fork()
    if process:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping)
        return process
    try:
        for number in stopping:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping)
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        os.execv(command[0], command)
    except OSError as error:
        os.write(sys.stderr.fileno(), f"{command[0]} cannot be run: {error.strerror}\n".encode(errors="replace"))
    finally:
        os._exit(CANNOT_RUN)


def failure_report(code: str, message: str, hint: str | None) -> str:
    """Return a failure of the supervisor's own as workers report theirs."""
    import json  # noqa: PLC0415 - costs memory, and is wanted in the end only

    return json.dumps({"failure": code, "message": message, "hint": hint, "matches": []})


def source_watch(directory: str) -> "Callable[[], bool]":
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


def main(arguments: "Sequence[str]") -> None:
    """Run the program, and become another where there is a failure to be told.

    Args:
        arguments: As ``Supervisor`` takes them, the sockets separated by commas; then the separator, and the command
            line of the program that tells failures, which gets the failure as its last argument.
    """
    drain_seconds, settings, sockets, ready, source, *commands = arguments
    middle = commands.index(SEPARATOR)
    inherited = [*map(int, sockets.split(","))]
    try:
        supervisor = Supervisor(float(drain_seconds), int(settings), inherited, ready, source, commands[:middle])
        status, failure = supervisor.run()
    except OSError as error:
        message = f"no worker can be started: {error.strerror}"
        status, failure = 1, failure_report("execution_error", message, "See which limits the system sets.")
    if failure is not None:
        end = commands[middle + 1 :]
        # Another signal would show a traceback of the program that is being read.
        signal.pthread_sigmask(signal.SIG_BLOCK, stopping_signals())
        os.execv(end[0], [*end, failure])
    sys.exit(status)
