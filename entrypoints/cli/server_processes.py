"""Servers that commands start or ask: one that ends with this process, one that goes on, one that runs already."""

import http.client
import json
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs

from mlxk.domain.errors import ExecutionError, InterruptedRunError, NetworkError, UnauthorizedError
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

MOST_ANSWER_BYTES = 4 * 2**20
"""Of a running server's list of models."""

END_SECONDS = 10
"""Time for a server to end after its input, until it is killed."""


@attrs.frozen
class Server:
    """A server, and a key that opens it."""

    address: str
    """Without ``/v1``."""
    key: str = attrs.field(repr=False)
    ended: Callable[[], bool] = attrs.field(default=lambda: False, eq=False)
    """Whether it has ended, as far as this process knows."""


@attrs.frozen
class ForeignModel:
    """What a running server, of this program or of another make, says about a model."""

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
    """Has a redirection fail: the key is for one server only."""

    def redirect_request(self, *_arguments: object) -> None:
        """Follow none."""


def served_models(server: Server) -> list[ForeignModel]:
    """Return the models of a running server, without those whose names cannot be printed.

    Raises:
        NetworkError: It does not answer, or not as a server of models does.
        UnauthorizedError: It wants another key.
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
    """Whether a value can be the name of a model: in messages, files and command lines."""
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
    """Return a number of a foreign document that can be one of bytes or tokens, else None."""
    return value if type(value) is int and 0 < value < 2**63 else None


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
            server.returncode = 0  # it goes on, and is not waited for
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
        server.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()  # its worker ends with it
        server.wait()
