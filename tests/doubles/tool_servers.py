"""In-memory double of tool servers: functions by the names of a server and a tool.

servers = InMemoryToolServers({("files", "read"): lambda arguments: "hello"})
(tool,) = servers.start([ToolServer("files")])
servers.call(tool, {"path": "a.txt"}).text  # "hello"
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from mlxk.application.ports.other_processes import ServerTool, ToolResult, ToolServer, ToolServers
from mlxk.domain.errors import ExecutionError

Function = Callable[[Mapping[str, Any]], str]


class InMemoryToolServers(ToolServers):
    """Calls functions.

    Args:
        functions: Functions by the names of server and tool; a call that raises ``ValueError`` fails.
        description: What the servers say of each tool.
        parameters: The schema of each tool's arguments.
    """

    def __init__(
        self,
        functions: Mapping[tuple[str, str], Function],
        description: str = "",
        parameters: Mapping[str, Any] = MappingProxyType({"type": "object"}),
    ) -> None:
        self._functions = dict(functions)
        self._description = description
        self._parameters = parameters
        self._started: frozenset[str] = frozenset()

    def start(self, servers: Sequence[ToolServer]) -> tuple[ServerTool, ...]:
        names = [server.name for server in servers]
        for name in names:
            if name not in {server for server, _ in self._functions}:
                raise ExecutionError(f"the tool server '{name}' cannot be started: there is none")
        self._started = frozenset(names)
        found = [(server, tool) for server, tool in self._functions if server in self._started]
        return tuple(ServerTool(server, tool, self._description, self._parameters) for server, tool in found)

    def call(self, tool: ServerTool, arguments: Mapping[str, Any]) -> ToolResult:
        if tool.server not in self._started:
            raise ExecutionError(f"the tool server '{tool.server}' has ended")
        try:
            return ToolResult(self._functions[tool.server, tool.name](arguments))
        except ValueError as error:
            return ToolResult(str(error), failed=True)

    def close(self) -> None:
        self._started = frozenset()
