"""Child processes of commands: programs in the foreground and servers; and the models of a running server."""

import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import termios
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import Any

import attrs

from mlxk.application.ports.other_processes import LOOPBACK_NAMES
from mlxk.domain.errors import ExecutionError, InterruptedRunError, NetworkError, UnauthorizedError
from mlxk.entrypoints.settings import inherited
from mlxk.entrypoints.wording import error_of

AGENT_GRACE_SECONDS = 10
"""Time for an agent to end after a signal, until it is killed."""

_PROXIES = {"http_proxy", "https_proxy", "all_proxy"}

_REPORT_SECONDS = 0.05
"""Time in which the kernel reports that a stopped process was continued."""


class ForegroundRunner:
    """Runs a program in the foreground of this terminal.

    The terminal sends Ctrl-C to the program itself; without a terminal, it is forwarded like SIGTERM and SIGHUP.

    Args:
        grace_seconds: Seconds between a forwarded SIGTERM or SIGHUP and SIGKILL; None never kills.
        started: Called with the program's process id when it runs.
    """

    def __init__(
        self, grace_seconds: int | None = AGENT_GRACE_SECONDS, started: Callable[[int], None] = lambda process: None
    ) -> None:
        self._grace_seconds = grace_seconds
        self._on_start = started
        self._program: subprocess.Popen[bytes] | None = None
        self._starting = False
        self._pending_signal: int | None = None
        """A signal that came while the program was being started."""

    @contextmanager
    def signals_taken(self) -> Iterator[None]:
        """Forward SIGTERM and SIGHUP within the block; before the program's start, raise ``InterruptedRunError``."""
        with handling((signal.SIGTERM, signal.SIGHUP), self._on_signal):
            yield

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Run a program to its end; return its exit status, or 128 + the number of the signal that ended it.

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
            self._on_start(program.pid)
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
        if self._pending_signal is not None:
            self._on_signal(self._pending_signal, None)
        return self._program

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._starting:
            self._pending_signal = number
        elif self._program is None:
            raise InterruptedRunError("stopped before the program was started")
        elif self._program.returncode is None:
            os.kill(self._program.pid, number)  # not send_signal, which would reap a program that has ended
            if number != signal.SIGINT and self._grace_seconds is not None:
                signal.signal(signal.SIGALRM, self._kill)
                signal.alarm(self._grace_seconds)

    def _kill(self, number: int, frame: FrameType | None) -> None:
        assert self._program is not None
        os.kill(self._program.pid, signal.SIGKILL)


def bypassing_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which requests to this machine bypass the proxies, where it names any."""
    if not any(name.lower() in _PROXIES for name in environment):
        return dict(environment)
    former = environment.get("NO_PROXY") or environment.get("no_proxy")
    hosts = ",".join((*((former,) if former else ()), *LOOPBACK_NAMES))
    return {**environment, "NO_PROXY": hosts, "no_proxy": hosts}


@contextmanager
def handling(numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle signals within the block, except ignored ones, such as SIGHUP under ``nohup``."""
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    former = {number: signal.signal(number, handler) for number in handled}
    try:
        yield
    finally:
        for number, former_handler in former.items():
            signal.signal(number, former_handler)


def _leave_to_program(number: int, frame: FrameType | None) -> None:
    """Do nothing: the terminal sends Ctrl-C to the program as well."""


def _shares_terminal() -> bool:
    """Whether this process is in the terminal's foreground group, to all of which the terminal sends its signals."""
    try:
        with open("/dev/tty", "rb", buffering=0) as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


@contextmanager
def _terminal_restored() -> Iterator[None]:
    """Restore the modes of the terminal after the block; a program that is killed does not."""
    with open("/dev/tty", "rb", buffering=0) as terminal:
        modes = termios.tcgetattr(terminal)
        try:
            yield
        finally:
            with suppress(termios.error):
                termios.tcsetattr(terminal, termios.TCSADRAIN, modes)


def _waited_for(process: int, shares: bool) -> int:
    """Wait until a process has ended; return its wait status.

    Args:
        process: Its id.
        shares: Whether it shares the terminal. If it stops alone, this process stops as well, so that the shell gets
            the terminal back. After a stop and continuation of the whole group, the report of the stop is outdated.
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
    """Return the next wait status of a process; None with ``WNOHANG`` if there is none yet."""
    found, status = os.waitpid(process, os.WUNTRACED | os.WCONTINUED | flags)
    return status if found else None


PROGRAM = (sys.executable, "-P", "-m", "mlxk")
"""Command of this program; ``-P`` keeps the working directory out of the module path."""

SERVE = (
    *(*PROGRAM, "serve", "--host", "127.0.0.1", "--port", "0", "--json"),
    *("--drain-timeout", "0", "--until-eof"),
)
"""Command line of a server on a free port of the loopback interface."""

KEY_VARIABLE = "MLXK2_API_KEY"

ANSWER_SECONDS = 30
"""Timeout of the request for a server's models."""

MOST_ANSWER_BYTES = 4 * 2**20
"""Largest list of models that is read."""

END_SECONDS = 10
"""Seconds between the end of a server's standard input and SIGKILL."""


@attrs.frozen
class Server:
    """A server, and an API key for it."""

    address: str
    """Base URL, without ``/v1``."""
    key: str = attrs.field(repr=False)
    ended: Callable[[], bool] = attrs.field(default=lambda: False, eq=False)
    """Returns whether it has ended; always False for a server that this process did not start."""


@attrs.frozen
class ForeignModel:
    """A model in the list of a running server, of mlxk or of another make."""

    id: str
    size_bytes: int | None
    """None where the server does not say."""
    context_length: int | None
    """Tokens; None where the server does not say."""
    supports_tools: bool
    """True where the server does not say."""
    loaded: bool
    """Whether it is in memory."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Makes a redirection fail: the key must not reach another server."""

    def redirect_request(self, *_arguments: object) -> None:
        """Follow no redirection."""


def served_models(server: Server) -> list[ForeignModel]:
    """Return the models of a running server, without those whose names cannot be printed.

    Raises:
        NetworkError: It does not answer, or its answer is not a list of models.
        UnauthorizedError: It refuses the key.
    """
    key = f"Bearer {server.key}".encode("utf-8", "surrogateescape").decode("latin-1")  # as http.client sends it
    try:
        request = urllib.request.Request(f"{server.address}/v1/models", headers={"Authorization": key})
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects())
        with direct.open(request, timeout=ANSWER_SECONDS) as answer:
            content = answer.read(MOST_ANSWER_BYTES + 1)
        if len(content) > MOST_ANSWER_BYTES:
            raise NetworkError(
                f"the answer of the server at {server.address} is larger than {MOST_ANSWER_BYTES >> 20} MiB"
            )
        return [_served(each) for each in json.loads(content)["data"] if _is_name(each["id"])]
    except urllib.error.HTTPError as error:
        if error.code in {401, 403}:
            raise UnauthorizedError(
                f"the server at {server.address} wants another key", hint="Set MLXK2_API_KEY to one of its keys."
            ) from error
        raise NetworkError(
            f"the server at {server.address} answers with status {error.code}",
            hint="It redirects, which is not followed: name the other address." if error.code // 100 == 3 else None,
        ) from error
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, RecursionError) as error:
        raise NetworkError(
            f"no server of models answers at {server.address}", hint="Start one: mlxk serve. Or leave out --url."
        ) from error


def _is_name(value: object) -> bool:
    """Whether a value can be a model's name in messages, files and command lines."""
    return isinstance(value, str) and bool(value) and value.isprintable()


def _served(model: Mapping[str, Any]) -> ForeignModel:
    tools = model.get("supports_tools")
    return ForeignModel(
        id=model["id"],
        size_bytes=_whole_number(model.get("size_bytes")),
        context_length=_whole_number(model.get("context_length")),
        supports_tools=tools if isinstance(tools, bool) else True,
        loaded=model.get("loaded") is True,
    )


def _whole_number(value: object) -> int | None:
    """Return a value that is a plausible number of bytes or tokens, else None."""
    return value if type(value) is int and 0 < value < 2**63 else None


@contextmanager
def own_server(model: str, log: str) -> Iterator[Server]:
    """Start a server on a free port of the loopback interface; it ends with the block or this process.

    Args:
        model: The model to load; it also answers requests with an unknown model name.
        log: Path of its log file.

    Raises:
        MlxkError: The server cannot be started, or not with this model.
        InterruptedRunError: SIGTERM or SIGHUP came before it was ready.
    """
    key = secrets.token_hex(32)
    with open(log, "ab") as file:
        # In a session of its own, Ctrl-C of the terminal does not reach it.
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
    """Start a server that outlives this process; return the data of its ready report.

    Args:
        typed: Its command line, without the name of the program.
        log: Path of its log file.

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
            server.returncode = 0  # Popen must not wait for it, nor warn that it still runs
            return ready
        except KeyboardInterrupt:
            server.terminate()
            raise InterruptedRunError("stopped before the server was ready") from None


def _ready(server: "subprocess.Popen[bytes]") -> Mapping[str, Any]:
    """Wait until a server is ready; return the data of its report.

    Raises:
        MlxkError: It reports an error, or ends without a report.
    """
    assert server.stdout is not None
    report = server.stdout.readline()
    if report == b"{\n":  # an error, a document of several lines
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
        server.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()  # its worker ends with it
        server.wait()
