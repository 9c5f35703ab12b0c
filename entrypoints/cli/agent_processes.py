"""Processes of commands: a server that ends with this one, one that goes on, and an agent that has the terminal."""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import termios
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import Any

import attrs

from mlxk.domain.errors import ExecutionError, InterruptedRunError, NetworkError, StorageError, UnauthorizedError
from mlxk.entrypoints.settings import inherited
from mlxk.entrypoints.wording import error_of

PROGRAM = (sys.executable, "-P", "-m", "mlxk")
"""Runs this program; ``-P`` keeps modules of the working directory out."""

SERVE = (
    *(*PROGRAM, "serve", "--host", "127.0.0.1", "--port", "0", "--json"),
    *("--drain-timeout", "0", "--until-eof"),
)
"""Command line of a server."""

KEY_VARIABLE = "MLXK2_API_KEY"

ANSWER_SECONDS = 30
"""Time for a running server to list its models."""

GRACE_SECONDS = 10
"""Time for an agent to end after a signal, and for a server to end after its agent, until they are killed."""

_PROXIES = {"http_proxy", "https_proxy", "all_proxy"}

_REPORT_SECONDS = 0.05
"""Within this time, a process that was continued is seen to be."""


@attrs.frozen
class Server:
    """A server, and a key that opens it."""

    address: str
    """Without ``/v1``."""
    key: str = attrs.field(repr=False)
    ended: Callable[[], bool] = attrs.field(default=lambda: False, eq=False)
    """Whether it has ended, as far as this process knows."""


def served_models(server: Server) -> list[dict[str, Any]]:
    """Return the models of a running server, as it describes them.

    Raises:
        NetworkError: It does not answer, or not as a server of models does.
        UnauthorizedError: It wants another key.
    """
    request = urllib.request.Request(f"{server.address}/v1/models", headers={"Authorization": f"Bearer {server.key}"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=ANSWER_SECONDS) as answer:
            models: list[dict[str, Any]] = json.load(answer)["data"]
            return [each for each in models if isinstance(each["id"], str)]
    except urllib.error.HTTPError as error:
        if error.code in {401, 403}:
            raise UnauthorizedError(
                f"the server at {server.address} wants another key", hint="Set MLXK2_API_KEY to one of its keys."
            ) from error
        raise NetworkError(f"the server at {server.address} answers with status {error.code}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NetworkError(
            f"no server of models answers at {server.address}", hint="Start one: mlxk serve. Or leave out --url."
        ) from error


def new_log(folder: str | None) -> str:
    """Make an empty file for a server's log, which only its owner reads; return its path.

    Args:
        folder: Of temporary files; None for that of the system.

    Raises:
        StorageError: It cannot be made.
    """
    try:
        descriptor, path = tempfile.mkstemp(prefix="mlxk-launch-", suffix=".log", dir=folder)
    except OSError as error:
        raise StorageError(
            f"the folder for temporary files cannot be used: {error.strerror}",
            hint="Set TMPDIR to a folder with free space.",
        ) from error
    os.close(descriptor)
    return path


@contextmanager
def own_server(model: str, log: str) -> Iterator[Server]:
    """Start a server on a free port of the loopback interface; it ends with the block, or with this process.

    Args:
        model: The model to have in memory; it answers to every name that no model has.
        log: Path of the file for its log.

    Raises:
        MlxkError: The server cannot be started, or not with this model.
        InterruptedRunError: SIGTERM or SIGHUP came meanwhile.
    """
    key = secrets.token_hex(32)
    with open(log, "ab") as file:
        # A session of its own keeps Ctrl-C of the terminal from it.
        server = subprocess.Popen(
            [*SERVE, "--model", model, "--default-model", model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            env=inherited({KEY_VARIABLE: key}),
            start_new_session=True,
        )
    try:
        yield Server(str(_ready(server)["url"]), key, lambda: server.poll() is not None)
    finally:
        _end(server)


def background_server(typed: Sequence[str], log: str) -> Mapping[str, Any]:
    """Start a server that goes on without this process; return what it reports once it is ready.

    Args:
        typed: Its command line, without the name of the program.
        log: Path of the file for its log.

    Raises:
        MlxkError: It cannot be started.
        InterruptedRunError: Ctrl-C came before it was ready; it was stopped.
    """
    with open(log, "ab") as file:
        server = subprocess.Popen(
            [*PROGRAM, *typed, "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=file,
            env=inherited({}),
            start_new_session=True,
        )
    assert server.stdout is not None
    with server.stdout:
        try:
            ready = _ready(server)
            server.returncode = 0  # it goes on, and nobody waits for it
            return ready
        except KeyboardInterrupt:
            server.terminate()
            raise InterruptedRunError("stopped before the server was ready") from None


def _ready(server: "subprocess.Popen[bytes]") -> Mapping[str, Any]:
    """Wait until a server is ready; return what it reports."""
    assert server.stdout is not None
    report = server.stdout.readline()
    if report == b"{\n":  # an error, which stands on several lines
        report += server.stdout.read()
    try:
        document = json.loads(report)
    except ValueError:
        raise ExecutionError("the server ended before it was ready", hint="Its log says why.") from None
    if document["error"] is not None:
        raise error_of(document["error"]["type"], document["error"])
    data: Mapping[str, Any] = document["data"]
    return data


def _end(server: "subprocess.Popen[bytes]") -> None:
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.close()
    server.stdout.close()
    try:
        server.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()  # its worker ends with it
        server.wait()


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
    without = ",".join((*((former,) if former else ()), "127.0.0.1", "localhost"))
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
