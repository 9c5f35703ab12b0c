"""Tools of servers: one-shot and in a chat, asked for or allowed by name, and servers that misbehave."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from clients.agent_models import TEMPLATE
from models.scripted_model import write_model

from mlxk.adapters.mcp.tool_servers import START_SECONDS, McpToolServers
from mlxk.application.ports.other_processes import ToolServer
from mlxk.domain.errors import ExecutionError
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.program import run
from mlxk.entrypoints.container import build
from mlxk.entrypoints.settings import read_settings

pytestmark = pytest.mark.mlx
Run = Callable[..., tuple[int, str, str]]
SERVER = Path(__file__).parents[1] / "tool_server.py"
REFUSAL = "The user did not allow this call."


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def entry(name: str = "first", **fields: object) -> dict[str, object]:
    return {"command": sys.executable, "args": [str(SERVER), name], **fields}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with files of servers and a model for each tool."""
    for file, servers in {
        "one.json": {"first": entry(env={"FILE_SAYS": "yes"})},
        "two.json": {"first": entry(), "second": entry("second")},
        "noisy.json": {"noisy": entry("noisy")},
        "broken.json": {"first": entry(), "bad": entry("broken")},
    }.items():
        (tmp_path / file).write_text(json.dumps({"mcpServers": servers}))
    return tmp_path


@pytest.fixture
def mlxk_here(
    program_environment: dict[str, str],
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Run a command line in this process on a model that makes one call; return status, output and messages."""

    def execute(made: str, *arguments: str) -> tuple[int, str, str]:
        replies = {"<tool_response>": "It was refused.", "@@ECHO@@": "The tool has answered."}
        special = ("<|im_start|>",)
        # A text of one letter has few tokens where the tokenizer has learned from one.
        corpus = "x" * 4096 if "huge" in made else ""
        write_model(folder / "caller", TEMPLATE, made, replies, special=special, context=400_000, corpus=corpus)
        with contextlib.chdir(folder), open(os.devnull) as null:
            monkeypatch.setattr("sys.stdin", null)
            settings = read_settings({**program_environment, "TERM": "dumb"})
            context = CommandContext(settings, build, lambda *_: 1, null.fileno())
            status = run(["run", "./caller", "Do it.", "--temperature", "0", *arguments], context)
        printed = capfd.readouterr()
        return status, printed.out, printed.err

    return execute


def data(answer: tuple[int, str, str]) -> dict[str, Any]:
    assert answer[0] == 0, answer
    found: dict[str, Any] = json.loads(answer[1])["data"]
    return found


@pytest.mark.parametrize("chat", [[], ["--chat"]])
def test_a_call_that_is_allowed_is_made_and_its_result_goes_back(mlxk_here: Run, chat: list[str]) -> None:
    done = mlxk_here(call("echo", text="Grüße"), "--mcp", "one.json", "--allow-tool", "echo", *chat)
    assert (done[0], done[1].strip()) == (0, "The tool has answered.")
    assert "[echo of first, " in done[2]


def test_a_call_that_is_not_allowed_is_refused_without_a_terminal_and_the_model_is_told(mlxk_here: Run) -> None:
    found = data(mlxk_here(call("echo", text="x"), "--mcp", "one.json", "--allow-tool", "fails", "--json"))
    assert found["response"] == "It was refused."
    (made,) = found["tool_results"]
    assert (made["name"], made["server"], made["called"], made["failed"]) == ("echo", "first", False, True)
    assert made["result"] == f"Error: {REFUSAL}"


def test_nothing_of_the_environment_reaches_a_server_but_what_the_file_names(
    mlxk_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SECRET_TOKEN", "hidden")
    found = data(mlxk_here(call("environment"), "--mcp", "one.json", "--allow-tool", "environment", "--json"))
    seen = json.loads(found["tool_results"][0]["result"].removeprefix("@@ECHO@@ "))
    assert "FILE_SAYS" in seen
    assert set(seen) <= {"FILE_SAYS", "HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "LC_CTYPE"}


def test_equal_names_of_several_servers_stay_apart(mlxk_here: Run) -> None:
    arguments = ("--mcp", "two.json", "--allow-tool", "second__echo", "--json")
    (made,) = data(mlxk_here(call("second__echo", text="x"), *arguments))["tool_results"]
    assert (made["server"], made["result"]) == ("second", "@@ECHO@@ x from second")
    (refused,) = data(mlxk_here(call("first__echo", text="x"), *arguments))["tool_results"]
    assert not refused["called"]
    status, _, err = mlxk_here("hi there", "--mcp", "two.json", "--allow-tool", "echo")
    assert status == 1
    assert "--allow-tool: there is no tool 'echo'" in err


@pytest.mark.parametrize(
    ("tool", "result", "said"),
    [
        ("escapes", "@@ECHO@@ red done", ""),
        ("turns", "@@ECHO@@ one\ntwo\nthree\nfour", ""),
        ("fails", "Error: @@ECHO@@ no such file", "[fails of first failed: @@ECHO@@ no such file]"),
        ("picture", "(no text)\n[not shown: image/png, 3 bytes]\n[not shown: image/png, 2 bytes]", "get image/png, 3"),
        ("dies", "Error: the tool server 'first' failed when 'dies' was called: ", "it wrote: out of cheese"),
    ],
)
def test_what_servers_say_is_cleaned_and_failures_reach_the_model(
    mlxk_here: Run, tool: str, result: str, said: str
) -> None:
    done = mlxk_here(call(tool), "--mcp", "one.json", "--allow-tool", tool, "--json")
    (made,) = data(done)["tool_results"]
    assert made["result"].startswith(result)
    assert said in done[2]
    assert "\x1b" not in done[1] + done[2]


def test_a_tool_that_the_model_has_made_up_is_answered_and_a_function_of_a_file_is_left_to_the_caller(
    mlxk_here: Run, folder: Path
) -> None:
    found = data(mlxk_here(call("nosuch"), "--mcp", "one.json", "--json"))
    (made,) = found["tool_results"]
    assert (made["server"], made["called"]) == (None, False)
    assert made["result"].startswith("Error: There is no tool nosuch. The tools are: echo, ")
    function = {"type": "function", "function": {"name": "own", "parameters": {"type": "object"}}}
    (folder / "own.json").write_text(json.dumps([function]))
    found = data(mlxk_here(call("own"), "--mcp", "one.json", "--tools", "own.json", "--json"))
    assert [each["name"] for each in found["tool_calls"]] == ["own"]
    assert found["tool_results"] == []


def test_a_huge_result_is_cut_and_that_is_said(mlxk_here: Run) -> None:
    done = mlxk_here(call("huge"), "--mcp", "one.json", "--allow-tool", "huge", "--json")
    (made,) = data(done)["tool_results"]
    assert len(made["result"]) < 70_000
    assert "the model does not get 34472 of 100008 characters" in done[2]


def test_a_server_that_prints_what_is_no_message_is_understood_all_the_same(mlxk_here: Run) -> None:
    status, out, err = mlxk_here(call("echo", text="x"), "--mcp", "noisy.json", "--allow-tool", "echo")
    assert (status, out) == (0, "The tool has answered.\n")
    assert "Traceback" not in err
    assert "\x1b" not in err


def test_calls_without_an_end_are_stopped(mlxk_here: Run, folder: Path) -> None:
    reply = call("echo", text="again")
    write = folder / "looping"
    write_model(write, TEMPLATE, reply, special=("<|im_start|>",), context=100_000)
    done = mlxk_here("unused reply", "--mcp", "one.json", "--allow-tool", "echo", "--model", "./looping", "--json")
    found = data(done)
    assert len(found["tool_results"]) == 16
    assert found["finish_reason"] == "tool_calls"
    assert "tools were called 16 times for one prompt" in done[2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "--mcp: 'faulty.json' is not valid JSON"),
        ("[]", "--mcp: 'faulty.json' has no mcpServers"),
        ('{"mcpServers": {"a": 1}}', "mcpServers.a must be an object"),
        ('{"mcpServers": {"a": {}}}', "mcpServers.a must have either a command or a url"),
        ('{"mcpServers": {"a": {"command": "x", "args": "y"}}}', "mcpServers.a.args must be a list of texts"),
        ('{"mcpServers": {"a": {"type": "sse", "url": "http://x"}}}', "mcpServers.a.type must be stdio or http"),
        ('{"mcpServers": {"a": {"type": ["http"], "url": "http://x"}}}', 'type must be stdio or http (got ["http"])'),
        ('{"mcpServers": {"a": {"type": {}, "command": "x"}}}', "mcpServers.a.type must be stdio or http (got {})"),
        ('{"mcpServers": {"a": {"url": "ftp://x"}}}', "mcpServers.a.url must begin with http"),
        ('{"mcpServers": {"a": {"command": "x", "env": {"K": 1}}}}', "mcpServers.a.env must be an object of texts"),
        (
            '{"mcpServers": {"a": {"command": "x", "env": {"K": "${NOT_SET_ANYWHERE}"}}}}',
            "mcpServers.a.env.K names the variable NOT_SET_ANYWHERE, which is not set",
        ),
        ('{"mcpServers": {"a": {"command": "/no/such/program"}}}', "the tool server 'a' cannot be started"),
        ('{"mcpServers": {"a": {"command": "true"}}}', "the tool server 'a' cannot be started"),
        ('{"mcpServers": {"a": {"url": "http://127.0.0.1:9/mcp"}}}', "the tool server 'a' cannot be started"),
    ],
)
def test_a_faulty_file_or_server_is_named(mlxk_here: Run, folder: Path, content: str, said: str) -> None:
    (folder / "faulty.json").write_text(content)
    status, _, err = mlxk_here("hi there", "--mcp", "faulty.json")
    assert status == 1
    assert said in err
    assert "Traceback" not in err


def test_a_server_that_cannot_start_says_its_last_words_and_the_others_end(mlxk_here: Run) -> None:
    status, _, err = mlxk_here("hi there", "--mcp", "broken.json")
    assert status == 1
    assert "the tool server 'bad' cannot be started: " in err
    assert "it wrote: cannot find my configuration" in err


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"Authorization": "Bearer ${MY_SECRET_TOKEN}"}, "headers.Authorization must be printable ASCII"),
        ({"Authorization": "Bearer sekret123 "}, "headers.Authorization must be printable ASCII"),
        ({"X-Key": "sekret123\u00e4"}, "headers.X-Key must be printable ASCII"),
        ({"X-Key": "sekret123\x01"}, "headers.X-Key must be printable ASCII"),
        ({"X-Key": "sekret123\0"}, "headers.X-Key must be valid Unicode"),
        ({"X Key": "sekret123"}, 'headers: "X Key" cannot be the name of a header'),
    ],
)
def test_a_header_that_cannot_be_sent_is_refused_and_its_value_is_not_shown(
    mlxk_here: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], said: str
) -> None:
    monkeypatch.setenv("MY_SECRET_TOKEN", "sekret123\n")
    servers = {"a": {"url": "http://127.0.0.1:9/mcp", "headers": headers}}
    (folder / "faulty.json").write_text(json.dumps({"mcpServers": servers}))
    status, out, err = mlxk_here("hi there", "--mcp", "faulty.json")
    assert status == 1
    assert f"mcpServers.a.{said}" in err
    assert "sekret" not in out + err


class Telltale(BaseHTTPRequestHandler):
    """A server that refuses all requests, and repeats what came with them."""

    def do_POST(self) -> None:
        """Answer with an error of the protocol, or with one of HTTP."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = f"no access to {self.path} with '{self.headers['Authorization']}'"
        answer = {"jsonrpc": "2.0", "id": request.get("id"), "error": {"code": -32000, "message": said}}
        self.send_response(401 if "plain" in self.path else 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.mark.parametrize("path", ["/mcp", "/plain"])
def test_what_a_server_repeats_of_its_headers_and_its_address_is_hidden(
    mlxk_here: Run, folder: Path, path: str
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Telltale) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_address[1]}{path}?key=sekret456"
        entries = {"a": {"url": url, "headers": {"Authorization": "Bearer sekret123"}}}
        (folder / "remote.json").write_text(json.dumps({"mcpServers": entries}))
        try:
            status, out, err = mlxk_here("hi there", "--mcp", "remote.json")
        finally:
            server.shutdown()
    assert (status, out) == (1, "")
    assert "the tool server 'a' cannot be started: " in err
    assert "sekret" not in err


@pytest.mark.parametrize("secret", ["sekret 123", 'sekret "1" \\ 2', "sekret-one\nsekret-two", "sekret" * 60])
def test_what_a_program_repeats_of_its_environment_is_hidden(mlxk_here: Run, folder: Path, secret: str) -> None:
    program = "import os, sys; sys.exit('bad key: ' + os.environ['API_KEY'] + repr(os.environ['API_KEY']))"
    entries = {"a": {"command": sys.executable, "args": ["-c", program], "env": {"API_KEY": secret}}}
    (folder / "local.json").write_text(json.dumps({"mcpServers": entries}))
    status, _, err = mlxk_here("hi there", "--mcp", "local.json")
    assert status == 1
    assert "it wrote: " in err
    assert "<hidden>" in err
    assert "sekret" not in err


def test_all_that_a_server_answers_before_it_can_be_used_is_within_one_limit() -> None:
    server = ToolServer("slow", (sys.executable, str(SERVER), "endless"))
    with contextlib.closing(McpToolServers(start_seconds=4)) as servers, pytest.raises(ExecutionError) as refusal:
        servers.start([server])
    assert refusal.value.message == "the tool server 'slow' cannot be started: it did not answer in time"


def test_a_server_that_prints_what_is_no_message_and_does_not_answer_is_named_with_it() -> None:
    server = ToolServer("chatty", (sys.executable, str(SERVER), "chatty"))
    before = time.monotonic()
    with contextlib.closing(McpToolServers()) as servers, pytest.raises(ExecutionError) as refusal:
        servers.start([server])
    assert time.monotonic() - before < START_SECONDS
    assert refusal.value.message == (
        "the tool server 'chatty' cannot be started: "
        "it printed what is no message of the protocol: usage: chatty [FILE]"
    )


STARTED = """
import sys, time
from mlxk.adapters.mcp.tool_servers import McpToolServers
from mlxk.application.ports.other_processes import ToolServer
McpToolServers().start([ToolServer("stays", tuple(sys.argv[1:]))])
print("started", flush=True)
time.sleep(300)
"""


def test_a_server_that_ignores_the_end_of_its_input_ends_with_a_killed_program(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        held = []
        for sent in (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
            fifo = tmp_path / sent.name  # held open by the server and its child alone: its end is theirs
            os.mkfifo(fifo)
            script = f'exec 9> "{fifo}"; sleep 300 & exec "{sys.executable}" "{SERVER}" stays'
            command = (sys.executable, "-c", STARTED, "/bin/sh", "-c", script)
            program = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            held.append(stack.enter_context(open(fifo, "rb")))
            assert program.stdout and program.stdout.readline() == b"started\n"
            program.send_signal(sent)
            assert program.wait() == -sent
        assert [each.read() for each in held] == [b"", b"", b""]


class Unending(BaseHTTPRequestHandler):
    """A server that answers everything but that it is left."""

    left = threading.Event()

    def do_POST(self) -> None:
        """Begin a session, and list no tools."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        version = request.get("params", {}).get("protocolVersion")
        results: dict[str, dict[str, object]] = {
            "initialize": {
                "protocolVersion": version,
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "a", "version": "1"},
            },
            "tools/list": {"tools": []},
        }
        result = results.get(request["method"])
        failure = {"error": {"code": -32601, "message": "no such method"}}
        answer = {"jsonrpc": "2.0", "id": request.get("id"), **({"result": result} if result else failure)}
        content = json.dumps(answer).encode() if "id" in request else b""
        self.send_response(200 if content else 202)
        self.send_header("Content-Type", "application/json")
        self.send_header("Mcp-Session-Id", "1")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        """Offer no stream."""
        self.send_response(405)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_DELETE(self) -> None:
        """Wait until the test has ended."""
        self.left.wait()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_a_server_that_does_not_answer_when_it_is_left_is_not_waited_for() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Unending) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            servers = McpToolServers(call_seconds=40)
            servers.start([ToolServer("a", address=f"http://127.0.0.1:{server.server_address[1]}/mcp")])
            before = time.monotonic()
            servers.close()
            assert time.monotonic() - before < 30
        finally:
            Unending.left.set()
            server.shutdown()


def test_what_has_no_effect_is_said_and_what_cannot_be_honoured_is_refused(mlxk_here: Run, folder: Path) -> None:
    entries = {"mcpServers": {"first": entry(autoApprove=["echo"]), "off": entry(disabled=True)}}
    (folder / "more.json").write_text(json.dumps(entries))
    _, out, err = mlxk_here(call("echo", text="x"), "--mcp", "more.json")
    assert out == "It was refused.\n"
    assert "[autoApprove of the tool server 'first' has no effect]" in err
    assert "[the tool server 'off' is disabled in its file]" in err
    assert "[echo was not called: --allow-tool echo allows it]" in err
    assert mlxk_here("hi there", "--allow-tool", "echo")[0] == 2
    assert mlxk_here("hi there", "--mcp", "one.json", "--no-chat-template")[0] == 2
