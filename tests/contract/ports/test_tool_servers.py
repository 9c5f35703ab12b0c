"""The contract of servers of tools, held by the double and by the adapter on a program and on an address."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from doubles.tool_servers import InMemoryToolServers

from mlxk.adapters.mcp.tool_servers import McpToolServers
from mlxk.application.ports.other_processes import ToolServer, ToolServers
from mlxk.domain.errors import ExecutionError

SERVER = Path(__file__).parents[2] / "tool_server.py"
BY_ADDRESS = """
import sys
from mcp.server.mcpserver import MCPServer
server = MCPServer("web")
@server.tool()
def echo(text: str) -> str:
    return f"@@ECHO@@ {text} from first"
@server.tool()
def fails() -> str:
    raise ValueError("@@ECHO@@ no such file")
server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
"""
Servers = tuple[ToolServers, ToolServer]


def echoed(arguments: Mapping[str, Any]) -> str:
    return f"@@ECHO@@ {arguments['text']} from first"


def failing(_: Mapping[str, Any]) -> str:
    raise ValueError("@@ECHO@@ no such file")


def program(name: str = "first") -> ToolServer:
    return ToolServer(name, (sys.executable, str(SERVER), name))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Run a server of the protocol's own package; return its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen([sys.executable, "-c", BY_ADDRESS, str(port)], stderr=subprocess.DEVNULL) as process:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/mcp"
        process.terminate()


@pytest.fixture(params=["double", "program", "address"])
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    if request.param == "double":
        double = InMemoryToolServers({("first", "echo"): echoed, ("first", "fails"): failing})
        chosen: Servers = (double, ToolServer("first"))
    elif request.param == "program":
        chosen = (McpToolServers(), program())
    else:
        chosen = (McpToolServers(), ToolServer("first", address=request.getfixturevalue("address")))
    yield chosen
    chosen[0].close()


def test_tools_are_listed_called_and_fail_by_their_results(servers: Servers) -> None:
    running, server = servers
    tools = {tool.name: tool for tool in running.start([server])}
    assert {"echo", "fails"} <= set(tools)
    assert tools["echo"].server == "first"
    assert running.call(tools["echo"], {"text": "Grüße"}).text == "@@ECHO@@ Grüße from first"
    failed = running.call(tools["fails"], {})
    assert failed.failed
    assert failed.text
    running.close()
    running.close()


@pytest.mark.parametrize("build", [lambda: InMemoryToolServers({}), McpToolServers])
def test_a_server_that_is_none_is_named(build: Callable[[], ToolServers]) -> None:
    with pytest.raises(ExecutionError, match="the tool server 'nowhere' cannot be started"):
        build().start([ToolServer("nowhere", ("/no/such/program",))])


@pytest.mark.parametrize(("secret", "hidden"), [("k9-a!", False), ("k9-a!z", True)])
def test_a_value_too_short_to_be_a_secret_is_left_as_the_word_it_may_be(secret: str, hidden: bool) -> None:
    code = "import os, sys; sys.exit('bad key: ' + os.environ['API_KEY'])"
    server = ToolServer("a", (sys.executable, "-c", code), environment={"API_KEY": secret})
    with pytest.raises(ExecutionError, match=f"it wrote: bad key: {'<hidden>' if hidden else secret}$"):
        McpToolServers().start([server])


def test_files_links_and_structures_are_results_and_an_answer_that_is_none_is_named() -> None:
    running = McpToolServers()
    tools = {tool.name: tool for tool in running.start([program()])}
    files = running.call(tools["files"], {})
    assert (files.text, files.left_out) == ("@@ECHO@@ text\nhttps://example.org/b.pdf", ("a file",))
    assert running.call(tools["structure"], {}).text == '{"degrees": 21, "where": "Köln"}'
    with pytest.raises(ExecutionError) as raised:
        running.call(tools["lies"], {})
    assert raised.value.message == (
        "the tool server 'first' failed when 'lies' was called: its answer is not one of the protocol"
    )
    running.close()


def test_a_call_that_takes_too_long_is_given_up_and_the_server_goes_on() -> None:
    running = McpToolServers(call_seconds=0.5)
    tools = {tool.name: tool for tool in running.start([program(), program("second")])}
    with pytest.raises(ExecutionError, match="failed when 'sleeps' was called: it did not answer in time"):
        running.call(tools["sleeps"], {})
    running.close()


def test_programs_end_with_their_client() -> None:
    running = McpToolServers()
    (tool,) = (each for each in running.start([program()]) if each.name == "echo")
    before = threading.active_count()
    assert running.call(tool, {"text": "a"}).text
    running.close()
    assert threading.active_count() < before
