"""Clients of Model Context Protocol servers, which are programs to start or HTTP addresses, by the ``mcp`` package.

The package is asynchronous. Its event loop runs in a thread of its own, and the methods here block on it, so that an
interrupt reaches the calling thread.
"""

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
"""How long a server may take to start and to list its tools; some download their package first."""

INVALID_OUTPUT_SECONDS = 5.0
"""How long a server may take to start after a line that is no message: some print a greeting first."""

CALL_SECONDS = 120.0
"""How long a tool call may take."""

END_SECONDS = 5.0
"""How long a server may take to disconnect."""

MAX_PAGES = 20
"""Pages of a tool list that are read."""

MAX_RESULT = 64 * 1024
"""Characters that are kept of a tool's result."""

_MAX_QUOTE = 300
"""Characters that an error message quotes of a server's message or log."""

_HIDDEN = "<hidden>"
_SHORTEST_SECRET = 6
"""Length from which a value is hidden; shorter values are words that any message may have."""

_ESCAPE_SEQUENCES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_][^\x1b]*(?:\x1b\\)?|[ -/]*[0-~]?)"
    r"|\x9b[0-?]*[ -/]*[@-~]"
)
"""Terminal control sequences."""

_LINE_BREAKS = re.compile(r"\r\n|[\r\x85\u2028\u2029]")
"""Line endings other than a line feed."""

_CONTROL_CHARACTERS = re.compile(rf"(?![\t\n])[{CONTROLS}{DIRECTIONS}]")
"""Control characters except tab and line feed, and characters that change the direction of text."""

_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/]")
"""Characters that hold no data in base64, such as padding and line breaks."""


@attrs.frozen
class _Connection:
    """A connected server."""

    server: ToolServer
    client: Client
    log: TextIO
    """The program's standard error."""


class _InvalidOutputError(Exception):
    """A server has printed a line that is no message of the protocol, which is the argument, and has not answered."""


class McpToolServers(ToolServers):
    """Starts or connects tool servers, and calls their tools.

    Args:
        start_seconds: Limit of connecting a server and listing its tools.
        call_seconds: Limit of a tool call.
    """

    def __init__(self, start_seconds: float = START_SECONDS, call_seconds: float = CALL_SECONDS) -> None:
        self._start_seconds, self._call_seconds = start_seconds, call_seconds
        self._open = contextlib.ExitStack()
        self._portal: BlockingPortal | None = None
        self._connections: dict[str, _Connection] = {}
        logger = logging.getLogger("mcp")  # would print messages of servers, with tracebacks
        logger.propagate = False
        logger.addHandler(logging.NullHandler())

    def start(self, servers: Sequence[ToolServer]) -> tuple[ServerTool, ...]:
        tools: list[ServerTool] = []
        self._portal = self._open.enter_context(start_blocking_portal())
        try:
            for server in servers:
                file = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
                log = self._open.enter_context(file)
                with self._translate_errors(server, log, "cannot be started"):
                    connecting = self._portal.wrap_async_context_manager(self._connect(server, log))
                    client, listed = self._open.enter_context(connecting)
                self._connections[server.name] = _Connection(server, client, log)
                tools += (_server_tool(server.name, tool) for tool in listed)
        except BaseException:
            self._disconnect(ExecutionError("stopped"))
            raise
        return tuple(tools)

    def call(self, tool: ServerTool, arguments: Mapping[str, Any]) -> ToolResult:
        connection = self._connections[tool.server]

        async def call_tool() -> CallToolResult:
            with anyio.fail_after(self._call_seconds):
                return await connection.client.call_tool(
                    tool.name, dict(arguments), read_timeout_seconds=self._call_seconds
                )

        with self._translate_errors(
            connection.server, connection.log, f"failed when '{printed(tool.name)}' was called"
        ):
            return _result(self._run(call_tool))

    def close(self) -> None:
        self._disconnect(None)

    def _disconnect(self, failure: Exception | None) -> None:
        """Disconnect all servers and end their programs.

        Args:
            failure: Cancels a connection in progress, which would be waited for otherwise. Never an interrupt itself:
                it would end the event loop before the programs.
        """
        self._connections.clear()
        with contextlib.suppress(Exception):  # disconnecting a server that has died fails, without consequence
            self._open.__exit__(type(failure) if failure else None, failure, None)

    def _run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine on the event loop and wait for it; an interrupt of the calling thread cancels it."""
        assert self._portal is not None
        future: Future[T] = self._portal.start_task_soon(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    @contextlib.asynccontextmanager
    async def _connect(self, server: ToolServer, log: TextIO) -> AsyncIterator[tuple[Client, list[Tool]]]:
        """Connect a server and list its tools, both within the limit; leaving the block disconnects it."""
        invalid: list[str] = []
        with _time_limit(self._start_seconds, invalid) as limit:

            async def note_invalid_output(message: object) -> None:
                if isinstance(message, ValidationError) and not invalid:
                    invalid.append(str(message.errors()[0]["input"]))
                    limit.deadline = min(limit.deadline, anyio.current_time() + INVALID_OUTPUT_SECONDS)

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
                    uses_proxy = httpx2.URL(server.address).host not in LOOPBACK_NAMES
                    http = httpx2.AsyncClient(headers=dict(server.headers), timeout=timeout, trust_env=uses_proxy)
                    transport = streamable_http_client(
                        server.address, http_client=await stack.enter_async_context(http)
                    )
                client = Client(
                    transport,
                    read_timeout_seconds=self._start_seconds,
                    cache=None,
                    message_handler=note_invalid_output,
                )
                await stack.enter_async_context(client)
                tools = await _tools(client)
                invalid[:] = [""]  # ignore invalid output from now on
                limit.deadline = math.inf
                try:
                    yield client, tools
                finally:
                    limit.deadline = anyio.current_time() + END_SECONDS

    @contextlib.contextmanager
    def _translate_errors(self, server: ToolServer, log: TextIO, what: str) -> Iterator[None]:
        """Translate failures into an error that names the server and quotes the last line of its log.

        Values of the server's environment, headers and address are hidden in it: they may be secret.
        """
        try:
            yield
        except (KeyboardInterrupt, ExecutionError):
            raise
        except (Exception, BaseExceptionGroup, CancelledError) as error:
            hidden = _secrets(server)
            raise ExecutionError(
                f"the tool server '{server.name}' {what}: {_reason(error, hidden)}{_last_line(log, hidden)}",
                hint="See whether it runs by itself, and what its file says of it.",
            ) from error


@contextlib.contextmanager
def _time_limit(seconds: float, invalid: Sequence[str]) -> Iterator[anyio.CancelScope]:
    """Limit the time of a block; the error has the first line of invalid output, if the server has printed any."""
    try:
        with anyio.fail_after(seconds) as limit:
            yield limit
    except TimeoutError:
        if not any(invalid):
            raise
        raise _InvalidOutputError(invalid[0]) from None


async def _tools(client: Client) -> list[Tool]:
    """Return all tools of a server."""
    tools: list[Tool] = []
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None:
            return tools
    raise ExecutionError("its list of tools has no end")


def _server_tool(server: str, tool: Tool) -> ServerTool:
    return ServerTool(server, tool.name, printed(tool.description or tool.title or ""), tool.input_schema)


def _result(result: CallToolResult) -> ToolResult:
    texts, left_out = [], []
    for block in result.content:
        match block:
            case TextContent():
                texts.append(block.text)
            case EmbeddedResource(resource=TextResourceContents() as resource):
                texts.append(resource.text)
            case ResourceLink():
                texts.append(str(block.uri))
            case ImageContent() | AudioContent():
                size = len(_NOT_BASE64.sub("", block.data)) * 3 // 4
                left_out.append(f"{block.mime_type}, {size} bytes")
            case _:
                left_out.append("a file")
    if not texts and result.structured_content is not None:
        texts.append(json.dumps(result.structured_content, ensure_ascii=False))
    text = printed("\n".join(texts))
    if len(text) > MAX_RESULT:
        left_out.append(f"{len(text) - MAX_RESULT} of {len(text)} characters")
        text = text[:MAX_RESULT]
    return ToolResult(text, result.is_error, tuple(map(printed, left_out)))


def printed(text: str) -> str:
    """Return a text without control sequences and control characters, except line feeds and tabs."""
    plain = _ESCAPE_SEQUENCES.sub("", _LINE_BREAKS.sub("\n", text))
    return _CONTROL_CHARACTERS.sub("", plain).encode("utf-8", "replace").decode()


def _secrets(server: ToolServer) -> tuple[str, ...]:
    """Return the values of a server's configuration to hide in messages, also in escaped form; longest first."""
    values = [*server.environment.values(), *server.headers.values()]
    values += [value.partition(" ")[2] for value in server.headers.values()]  # the credential without its scheme
    values += [line for value in values for line in value.splitlines()]
    if server.address is not None:
        with contextlib.suppress(httpx2.InvalidURL, ValueError):
            address = httpx2.URL(server.address)
            values += [server.address, str(address), address.raw_path.decode(), address.query.decode()]
            values += [*(value for _, value in address.params.multi_items()), address.username, address.password]
    forms = {_one_line(text) for value in values for text in (value, repr(value)[1:-1], json.dumps(value)[1:-1])}
    return tuple(sorted((text for text in forms if len(text) >= _SHORTEST_SECRET), key=len, reverse=True))


def _reason(error: BaseException, hidden: Sequence[str]) -> str:
    """Return the cause of a failure in a few words."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    match error:
        case TimeoutError():
            return "it did not answer in time"
        case _InvalidOutputError():
            return f"it printed what is no message of the protocol: {_short(str(error), hidden)}"
        case FileNotFoundError():
            return f"there is no folder '{error.filename}'"  # the guard reports a missing program
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


def _last_line(log: TextIO, hidden: Sequence[str]) -> str:
    """Return the last line of a program's standard error as the end of a sentence; empty without one."""
    try:
        log.seek(max(0, log.seek(0, 2) - 4096))
        lines = [line for line in printed(log.read()).split("\n") if line.strip()]
    except (OSError, ValueError):
        return ""
    return f"; it wrote: {_short(lines[-1], hidden)}" if lines else ""


def _short(text: str, hidden: Sequence[str]) -> str:
    """Return a text on one line with hidden values replaced, cut to ``_MAX_QUOTE`` characters."""
    line = _one_line(text)
    for secret in hidden:
        line = line.replace(secret, _HIDDEN)
    return line if len(line) <= _MAX_QUOTE else f"{line[:_MAX_QUOTE]}…"


def _one_line(text: str) -> str:
    return " ".join(printed(text).split())
