"""Processes that have the terminal: agents, and commands that are watched."""

import os
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType

from mlxk.application.ports.other_processes import LOOPBACK_NAMES
from mlxk.domain.errors import ExecutionError, InterruptedRunError

AGENT_GRACE_SECONDS = 10
"""Time for an agent to end after a signal, until it is killed."""

_PROXIES = {"http_proxy", "https_proxy", "all_proxy"}

_REPORT_SECONDS = 0.05
"""Within this time, a process that was continued is seen to be."""


class ForegroundRunner:
    """Runs a program in this terminal.

    Ctrl-C reaches it from the terminal, and where there is none, from here. SIGTERM and SIGHUP are passed on.

    Args:
        grace_seconds: Time for it to end after one of these two, until it is killed; None for any time.
        started: Called with its id when it runs.
    """

    def __init__(
        self, grace_seconds: int | None = AGENT_GRACE_SECONDS, started: Callable[[int], None] = lambda process: None
    ) -> None:
        self._grace_seconds = grace_seconds
        self._tell_started = started
        self._program: subprocess.Popen[bytes] | None = None
        self._starting = False
        self._early: int | None = None

    @contextmanager
    def signals_taken(self) -> Iterator[None]:
        """Handle SIGTERM and SIGHUP within a block; before it is started, they are ``InterruptedRunError``."""
        with handling((signal.SIGTERM, signal.SIGHUP), self._on_signal):
            yield

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Run a program until it ends; return its exit status, 128 and the number of the signal that ended it.

        Args:
            command: Its path and arguments.
            environment: All its variables.

        Raises:
            ExecutionError: It cannot be run.
        """
        shares = _shares_terminal()
        with (
            self.signals_taken(),
            handling((signal.SIGINT,), _leave_to_program if shares else self._on_signal),
            _terminal_restored() if shares else nullcontext(),
        ):
            program = self._started(command, environment)
            self._tell_started(program.pid)
            program.returncode = os.waitstatus_to_exitcode(_waited_for(program.pid, shares))
            signal.alarm(0)
        return program.returncode if program.returncode >= 0 else 128 - program.returncode

    def _started(self, command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        self._starting = True
        try:
            self._program = subprocess.Popen(list(command), env=dict(environment))
        except OSError as error:
            raise ExecutionError(
                f"'{command[0]}' cannot be run: {error.strerror}", hint="Run it by itself, or install it again."
            ) from error
        finally:
            self._starting = False
        if self._early is not None:
            self._on_signal(self._early, None)
        return self._program

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._starting:
            self._early = number
        elif self._program is None:
            raise InterruptedRunError("stopped before the program was started")
        elif self._program.returncode is None:
            os.kill(self._program.pid, number)  # not send_signal, which waits for a program that has ended
            if number != signal.SIGINT and self._grace_seconds is not None:
                signal.signal(signal.SIGALRM, self._kill)
                signal.alarm(self._grace_seconds)

    def _kill(self, number: int, frame: FrameType | None) -> None:
        assert self._program is not None
        os.kill(self._program.pid, signal.SIGKILL)


def past_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment whose proxies, where it names any, are not used for servers of this machine."""
    if not any(name.lower() in _PROXIES for name in environment):
        return dict(environment)
    former = environment.get("NO_PROXY") or environment.get("no_proxy")
    without = ",".join((*((former,) if former else ()), *LOOPBACK_NAMES))
    return {**environment, "NO_PROXY": without, "no_proxy": without}


@contextmanager
def handling(numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle signals within a block, except those that are ignored, as under ``nohup``."""
    heeded = [each for each in numbers if signal.getsignal(each) is not signal.SIG_IGN]
    former = {each: signal.signal(each, handler) for each in heeded}
    try:
        yield
    finally:
        for each, before in former.items():
            signal.signal(each, before)


def _leave_to_program(number: int, frame: FrameType | None) -> None:
    """Do nothing: the terminal sends Ctrl-C to the program, too."""


def _shares_terminal() -> bool:
    """Whether this process is in the foreground of a terminal, which then sends its signals to the program alike."""
    try:
        with open("/dev/tty", "rb", buffering=0) as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


@contextmanager
def _terminal_restored() -> Iterator[None]:
    """Restore the modes of the terminal, which a program that is killed leaves as they are."""
    with open("/dev/tty", "rb", buffering=0) as terminal:
        modes = termios.tcgetattr(terminal)
        try:
            yield
        finally:
            with suppress(termios.error):
                termios.tcsetattr(terminal, termios.TCSADRAIN, modes)


def _waited_for(process: int, shares: bool) -> int:
    """Wait until a process has ended; return its status.

    Args:
        process: Its number.
        shares: Whether to stop this process, too, where it stopped only itself: the shell then has the terminal
            again. Where all processes of the terminal were stopped and continued, its report is an old one.
    """
    status = _status(process)
    while status is None or not (os.WIFEXITED(status) or os.WIFSIGNALED(status)):
        if shares and status is not None and os.WIFSTOPPED(status):
            time.sleep(_REPORT_SECONDS)
            status = _status(process, os.WNOHANG)
            if status is None:
                os.kill(os.getpid(), signal.SIGSTOP)
        else:
            status = _status(process)
    return status


def _status(process: int, flags: int = 0) -> int | None:
    """Return the next status of a process, waiting for it unless a flag says otherwise."""
    found, status = os.waitpid(process, os.WUNTRACED | os.WCONTINUED | flags)
    return status if found else None
