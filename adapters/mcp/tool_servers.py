"""Servers of the Model Context Protocol: programs that are started, and addresses; with the protocol's own package.

The package is asynchronous. Its event loop runs in a thread of its own, and the methods here wait for it, so that an
interrupt reaches the thread that waits.
"""

import base64
import contextlib
import json
import logging
import math
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, TextIO, TypeVar

import anyio
import attrs
import httpx2
from anyio.from_thread import BlockingPortal, start_blocking_portal
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import (
    AudioContent,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
    Tool,
)
from pydantic import ValidationError

from mlxk.adapters.mcp import server_guard
from mlxk.application.ports.other_processes import LOOPBACK_NAMES, ServerTool, ToolResult, ToolServer, ToolServers
from mlxk.domain.errors import ExecutionError
from mlxk.domain.text import CONTROLS, DIRECTIONS

T = TypeVar("T")

START_SECONDS = 60.0
"""How long a server may take to start and to list its tools; one that fetches itself first needs some."""

NONSENSE_SECONDS = 5.0
"""How long a server that has printed what is no message may still take to start: some print a greeting first."""

CALL_SECONDS = 120.0
"""How long a call may take."""

END_SECONDS = 5.0
"""How long a server may take to answer that it is left."""

MAX_PAGES = 20
"""Most pages of a list of tools."""

MAX_RESULT = 64 * 1024
"""Most characters of a result."""

_MOST_SAID = 300
"""Characters of a server's message, or of its last words, in an error message."""

_HIDDEN = "<hidden>"
_SHORTEST_SECRET = 6
"""Characters of the shortest value that is hidden: shorter ones are words that any message may have."""

_SEQUENCES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_][^\x1b]*(?:\x1b\\)?|[ -/]*[0-~]?)"
    r"|\x9b[0-?]*[ -/]*[@-~]"
)
"""Control sequences of terminals."""

_BREAKS = re.compile(r"\r\n|[\r\x85\u2028\u2029]")
"""Ends of lines that are no line feed."""

_ACTING = re.compile(rf"(?![\t\n])[{CONTROLS}{DIRECTIONS}]")
"""Control characters, but neither tab nor line feed, and what changes the direction of text."""


@attrs.frozen
class _Connection:
    """A connected server."""

    server: ToolServer
    client: Client
    log: TextIO
    """What the program writes to standard error."""


class _NonsenseError(Exception):
    """A server has printed what is no message of the protocol, and has not answered."""


class McpToolServers(ToolServers):
    """Servers of tools.

    Args:
        start_seconds: How long a server may take to answer while it is connected.
        call_seconds: How long a call may take.
    """

    def __init__(self, start_seconds: float = START_SECONDS, call_seconds: float = CALL_SECONDS) -> None:
        self._start_seconds, self._call_seconds = start_seconds, call_seconds
        self._open = contextlib.ExitStack()
        self._portal: BlockingPortal | None = None
        self._connections: dict[str, _Connection] = {}
        messages = logging.getLogger("mcp")  # of the package, which would print what servers send, with tracebacks
        messages.propagate = False
        messages.addHandler(logging.NullHandler())

    def start(self, servers: Sequence[ToolServer]) -> tuple[ServerTool, ...]:
        found: list[ServerTool] = []
        self._portal = self._open.enter_context(start_blocking_portal())
        try:
            for server in servers:
                written = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
                log = self._open.enter_context(written)
                with self._reported(server, log, "cannot be started"):
                    connected = self._portal.wrap_async_context_manager(self._connected(server, log))
                    client, tools = self._open.enter_context(connected)
                self._connections[server.name] = _Connection(server, client, log)
                found += (_server_tool(server.name, tool) for tool in tools)
        except BaseException:
            self._leave(ExecutionError("stopped"))
            raise
        return tuple(found)

    def call(self, tool: ServerTool, arguments: Mapping[str, Any]) -> ToolResult:
        connection = self._connections[tool.server]

        async def ask() -> CallToolResult:
            with anyio.fail_after(self._call_seconds):
                return await connection.client.call_tool(
                    tool.name, dict(arguments), read_timeout_seconds=self._call_seconds
                )

        with self._reported(connection.server, connection.log, f"failed when '{printed(tool.name)}' was called"):
            return _result(self._wait(ask))

    def close(self) -> None:
        self._leave(None)

    def _leave(self, failure: Exception | None) -> None:
        """End all servers; after a failure also one that is still being connected, which is waited for otherwise.

        The event loop must not be given the interrupt itself, which would end it before it has ended the programs.
        """
        self._connections.clear()
        with contextlib.suppress(Exception):  # a server that died makes its end fail, which does not matter any more
            self._open.__exit__(type(failure) if failure else None, failure, None)

    def _wait(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine in the thread of the event loop; an interrupt of this thread cancels it."""
        assert self._portal is not None
        future: Future[T] = self._portal.start_task_soon(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    @contextlib.asynccontextmanager
    async def _connected(self, server: ToolServer, log: TextIO) -> AsyncIterator[tuple[Client, list[Tool]]]:
        """Connect a server and list its tools, both within the limit; leaving ends it."""
        nonsense: list[str] = []
        with _within(self._start_seconds, nonsense) as limit:

            async def heed(message: object) -> None:
                if isinstance(message, ValidationError) and not nonsense:
                    nonsense.append(str(message.errors()[0]["input"]))
                    limit.deadline = min(limit.deadline, anyio.current_time() + NONSENSE_SECONDS)

            async with contextlib.AsyncExitStack() as stack:
                if server.address is None:
                    parameters = StdioServerParameters(
                        command=sys.executable,
                        args=["-I", "-S", server_guard.__file__, *server.command],
                        env=dict(server.environment),
                        cwd=server.directory,
                        encoding_error_handler="replace",
                    )
                    transport = stdio_client(parameters, log)
                else:
                    timeout = httpx2.Timeout(self._start_seconds, read=self._call_seconds)
                    proxied = httpx2.URL(server.address).host not in LOOPBACK_NAMES
                    http = httpx2.AsyncClient(headers=dict(server.headers), timeout=timeout, trust_env=proxied)
                    transport = streamable_http_client(
                        server.address, http_client=await stack.enter_async_context(http)
                    )
                client = Client(transport, read_timeout_seconds=self._start_seconds, cache=None, message_handler=heed)
                await stack.enter_async_context(client)
                tools = await _tools(client)
                nonsense[:] = [""]  # what is printed from now on has no effect
                limit.deadline = math.inf
                try:
                    yield client, tools
                finally:
                    limit.deadline = anyio.current_time() + END_SECONDS

    @contextlib.contextmanager
    def _reported(self, server: ToolServer, log: TextIO, what: str) -> Iterator[None]:
        """Turn failures of the package into an error that names the server, and its last words if it left any.

        What the user's file says of its environment, headers and address is hidden in both: it may be secret.
        """
        try:
            yield
        except (KeyboardInterrupt, ExecutionError):
            raise
        except (Exception, BaseExceptionGroup, CancelledError) as error:
            hidden = _secrets(server)
            raise ExecutionError(
                f"the tool server '{server.name}' {what}: {_reason(error, hidden)}{_last_words(log, hidden)}",
                hint="See whether it runs by itself, and what its file says of it.",
            ) from error


@contextlib.contextmanager
def _within(seconds: float, nonsense: Sequence[str]) -> Iterator[anyio.CancelScope]:
    """Limit the time of a block; the error names the first line of nonsense that the server has printed."""
    try:
        with anyio.fail_after(seconds) as limit:
            yield limit
    except TimeoutError:
        if not any(nonsense):
            raise
        raise _NonsenseError(nonsense[0]) from None


async def _tools(client: Client) -> list[Tool]:
    """Return all tools of a server."""
    found: list[Tool] = []
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        found += page.tools
        cursor = page.next_cursor
        if cursor is None:
            return found
    raise ExecutionError("its list of tools has no end")


def _server_tool(server: str, tool: Tool) -> ServerTool:
    return ServerTool(server, tool.name, printed(tool.description or tool.title or ""), tool.input_schema)


def _result(found: CallToolResult) -> ToolResult:
    texts, left_out = [], []
    for block in found.content:
        match block:
            case TextContent():
                texts.append(block.text)
            case EmbeddedResource(resource=TextResourceContents() as resource):
                texts.append(resource.text)
            case ResourceLink():
                texts.append(str(block.uri))
            case ImageContent() | AudioContent():
                size = len(base64.b64decode(block.data, validate=False))
                left_out.append(f"{block.mime_type}, {size} bytes")
            case _:
                left_out.append("a file")
    if not texts and found.structured_content is not None:
        texts.append(json.dumps(found.structured_content, ensure_ascii=False))
    text = printed("\n".join(texts))
    if len(text) > MAX_RESULT:
        left_out.append(f"{len(text) - MAX_RESULT} of {len(text)} characters")
        text = text[:MAX_RESULT]
    return ToolResult(text, found.is_error, tuple(printed(each) for each in left_out))


def printed(text: str) -> str:
    """Return a text without control sequences and control characters, but with its line breaks and tabs."""
    plain = _SEQUENCES.sub("", _BREAKS.sub("\n", text))
    return _ACTING.sub("", plain).encode("utf-8", "replace").decode()


def _secrets(server: ToolServer) -> tuple[str, ...]:
    """Return the texts of a server's description that no message may show, as a message has them; longest first."""
    values = [*server.environment.values(), *server.headers.values()]
    values += [value.partition(" ")[2] for value in server.headers.values()]  # without the name of the scheme
    values += [line for value in values for line in value.splitlines()]
    if server.address is not None:
        with contextlib.suppress(httpx2.InvalidURL, ValueError):
            address = httpx2.URL(server.address)
            values += [server.address, str(address), address.raw_path.decode(), address.query.decode()]
            values += [*(value for _, value in address.params.multi_items()), address.username, address.password]
    spelled = {_one_line(text) for value in values for text in (value, repr(value)[1:-1], json.dumps(value)[1:-1])}
    return tuple(sorted((text for text in spelled if len(text) >= _SHORTEST_SECRET), key=len, reverse=True))


def _reason(error: BaseException, hidden: Sequence[str]) -> str:
    """Return what went wrong, in a few words."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    match error:
        case TimeoutError():
            return "it did not answer in time"
        case _NonsenseError():
            return f"it printed what is no message of the protocol: {_short(str(error), hidden)}"
        case FileNotFoundError():
            return f"there is no folder '{error.filename}'"  # a program that is missing is named by the guard
        case OSError() if error.strerror:
            return error.strerror
        case MCPError():
            return _short(error.error.message, hidden) or "it refused"
        case ValidationError():
            return "its answer is not one of the protocol"
        case httpx2.InvalidURL():
            return "its url is not a valid one"
        case _:
            return _short(str(error), hidden) or type(error).__name__


def _last_words(log: TextIO, hidden: Sequence[str]) -> str:
    """Return the last line that a program wrote to standard error, as the end of a sentence."""
    try:
        log.seek(max(0, log.seek(0, 2) - 4096))
        lines = [line for line in printed(log.read()).split("\n") if line.strip()]
    except (OSError, ValueError):
        return ""
    return f"; it wrote: {_short(lines[-1], hidden)}" if lines else ""


def _short(text: str, hidden: Sequence[str]) -> str:
    """Return a text on one line, without what must be hidden, cut where it is long."""
    words = _one_line(text)
    for secret in hidden:
        words = words.replace(secret, _HIDDEN)
    return words if len(words) <= _MOST_SAID else f"{words[:_MOST_SAID]}…"


def _one_line(text: str) -> str:
    return " ".join(printed(text).split())
