"""Processes of agents, which have the terminal."""

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
from mlxk.entrypoints.settings import inherited

GRACE_SECONDS = 10
"""Time for an agent to end after a signal, until it is killed."""

_PROXIES = {"http_proxy", "https_proxy", "all_proxy"}

_REPORT_SECONDS = 0.05
"""Within this time, a process that was continued is seen to be."""


class AgentRunner:
    """Runs an agent in this terminal.

    Ctrl-C reaches the agent from the terminal, and where there is none, from here. SIGTERM and SIGHUP are passed on;
    an agent that does not end in time is killed.
    """

    def __init__(self) -> None:
        self._agent: subprocess.Popen[bytes] | None = None
        self._starting = False
        self._early: int | None = None

    @contextmanager
    def signals_taken(self) -> Iterator[None]:
        """Handle SIGTERM and SIGHUP within a block; before an agent is started, they are ``InterruptedRunError``."""
        with _handling((signal.SIGTERM, signal.SIGHUP), self._on_signal):
            yield

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Run an agent until it ends; return its exit status, 128 and the number of the signal that ended it.

        Args:
            command: Its path and arguments.
            environment: Variables beside those of this process.

        Raises:
            ExecutionError: It cannot be run.
        """
        shares = _shares_terminal()
        with (
            self.signals_taken(),
            _handling((signal.SIGINT,), _leave_to_agent if shares else self._on_signal),
            _terminal_restored() if shares else nullcontext(),
        ):
            agent = self._started(command, environment)
            agent.returncode = os.waitstatus_to_exitcode(_waited_for(agent.pid, shares))
            signal.alarm(0)
        return agent.returncode if agent.returncode >= 0 else 128 - agent.returncode

    def _started(self, command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        self._starting = True
        try:
            self._agent = subprocess.Popen(list(command), env=past_proxies(inherited(environment)))
        except OSError as error:
            raise ExecutionError(
                f"'{command[0]}' cannot be run: {error.strerror}", hint="Run it by itself, or install it again."
            ) from error
        finally:
            self._starting = False
        if self._early is not None:
            self._on_signal(self._early, None)
        return self._agent

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._starting:
            self._early = number
        elif self._agent is None:
            raise InterruptedRunError("stopped before the agent was started")
        elif self._agent.returncode is None:
            os.kill(self._agent.pid, number)  # not send_signal, which waits for an agent that has ended
            if number != signal.SIGINT:
                signal.signal(signal.SIGALRM, self._kill)
                signal.alarm(GRACE_SECONDS)

    def _kill(self, number: int, frame: FrameType | None) -> None:
        assert self._agent is not None
        os.kill(self._agent.pid, signal.SIGKILL)


def past_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment whose proxies, where it names any, are not used for servers of this machine."""
    if not any(name.lower() in _PROXIES for name in environment):
        return dict(environment)
    former = environment.get("NO_PROXY") or environment.get("no_proxy")
    without = ",".join((*((former,) if former else ()), *LOOPBACK_NAMES))
    return {**environment, "NO_PROXY": without, "no_proxy": without}


@contextmanager
def _handling(numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle signals within a block, except those that are ignored, as under ``nohup``."""
    heeded = [each for each in numbers if signal.getsignal(each) is not signal.SIG_IGN]
    former = {each: signal.signal(each, handler) for each in heeded}
    try:
        yield
    finally:
        for each, before in former.items():
            signal.signal(each, before)


def _leave_to_agent(number: int, frame: FrameType | None) -> None:
    """Do nothing: the terminal sends Ctrl-C to the agent, too."""


def _shares_terminal() -> bool:
    """Whether this process is in the foreground of a terminal, which then sends its signals to the agent alike."""
    try:
        with open("/dev/tty", "rb", buffering=0) as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


@contextmanager
def _terminal_restored() -> Iterator[None]:
    """Restore the modes of the terminal, which an agent that is killed leaves as they are."""
    with open("/dev/tty", "rb", buffering=0) as terminal:
        modes = termios.tcgetattr(terminal)
        try:
            yield
        finally:
            with suppress(termios.error):
                termios.tcsetattr(terminal, termios.TCSADRAIN, modes)


def _waited_for(agent: int, shares: bool) -> int:
    """Wait until a process has ended; return its status.

    Args:
        agent: Its number.
        shares: Whether to stop this process, too, where the agent stopped only itself: the shell then has the terminal
            again. Where all processes of the terminal were stopped and continued, the agent's report is an old one.
    """
    status = _status(agent)
    while status is None or not (os.WIFEXITED(status) or os.WIFSIGNALED(status)):
        if shares and status is not None and os.WIFSTOPPED(status):
            time.sleep(_REPORT_SECONDS)
            status = _status(agent, os.WNOHANG)
            if status is None:
                os.kill(os.getpid(), signal.SIGSTOP)
        else:
            status = _status(agent)
    return status


def _status(agent: int, flags: int = 0) -> int | None:
    """Return the next status of a process, waiting for it unless a flag says otherwise."""
    found, status = os.waitpid(agent, os.WUNTRACED | os.WCONTINUED | flags)
    return status if found else None
