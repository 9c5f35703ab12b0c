"""Tools of servers in a chat on a pseudo-terminal: each call is asked for."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chatting import PROMPT, leave, say, start
from clients.agent_models import TEMPLATE
from models.scripted_model import write_model

from mlxk.adapters.mcp.tool_servers import START_SECONDS
from mlxk.entrypoints.cli.tool_calls import STOPPED

pytestmark = pytest.mark.e2e
SERVER = Path(__file__).parents[1] / "tool_server.py"
QUESTION = "Call it? [y/N]: "


def test_a_call_is_made_after_a_yes_only_and_an_interrupt_stops_it(
    program_environment: dict[str, str], tmp_path: Path
) -> None:
    def call(name: str, **arguments: str) -> str:
        return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"

    replies = {
        "@@SLEEP@@": call("echo", text="one") + "\n" + call("sleeps"),
        "<tool_response>": "It was refused.",
        "@@ECHO@@": "The tool has answered.",
    }
    made = call("echo", text="\x1b[2Jhi")
    write_model(tmp_path / "caller", TEMPLATE, made, replies, special=("<|im_start|>",), context=8192)
    servers = {"first": {"command": sys.executable, "args": [str(SERVER), "first"]}}
    (tmp_path / "servers.json").write_text(json.dumps({"mcpServers": servers}))
    terminal = start(program_environment, tmp_path, "run", "./caller", "--mcp", "servers.json", "--keep")
    assert "Tools: echo, environment, " in terminal.before
    for answer, said in (("n", "It was refused."), ("", "It was refused."), ("y", "The tool has answered.")):
        terminal.sendline("Do it.")
        terminal.expect_exact("The model calls echo of the tool server 'first' with")
        terminal.expect_exact('"text": "\\u001b[2Jhi"')
        terminal.expect_exact(QUESTION)
        say(terminal, answer, said)
        if answer != "y":
            say(terminal, "/undo", "0 turns left")
    say(terminal, "/show", "turns: 1")
    (kept,) = (Path(program_environment["HOME"]) / ".local" / "state" / "mlxk" / "chats").iterdir()
    roles = [message["role"] for message in json.loads(kept.read_text())["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant"]
    say(terminal, "/clear", "forgotten")
    terminal.sendline("@@SLEEP@@")
    terminal.expect_exact(QUESTION)
    terminal.sendline("y")
    terminal.expect_exact("The model calls sleeps of the tool server 'first' with")
    terminal.expect_exact(QUESTION)
    terminal.sendline("y")
    terminal.expect_exact("y\r\n")
    terminal.sendintr()
    terminal.expect_exact("[stopped]")
    terminal.expect_exact(PROMPT)
    say(terminal, "/show", "turns: 1")
    (other,) = set(kept.parent.iterdir()) - {kept}
    messages = json.loads(other.read_text())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert [message["content"] for message in messages[2:4]] == ["@@ECHO@@ one from first", f"Error: {STOPPED}"]
    leave(terminal)
    assert terminal.exitstatus == 0


def test_an_interrupt_is_heeded_while_a_server_starts_and_its_program_ends(
    program_environment: dict[str, str], tmp_path: Path
) -> None:
    program = "import os, time; open('started', 'x').write(f'{os.getpid()}.'); time.sleep(600)"
    entry = {"command": sys.executable, "args": ["-c", program], "cwd": str(tmp_path)}
    (tmp_path / "servers.json").write_text(json.dumps({"mcpServers": {"silent": entry}}))
    process = subprocess.Popen(
        [sys.executable, "-m", "mlxk", "run", "demo", "hi", "--mcp", "servers.json"],
        env={**os.environ, **program_environment},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    started = tmp_path / "started"
    try:
        while not (started.exists() and started.read_text().endswith(".")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=START_SECONDS - 10)
    finally:
        process.kill()
    assert "interrupted" in err
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text().removesuffix(".")), 0)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"command": sys.executable, "cwd": "/no/such"}, "there is no folder '/no/such'"),
        ({"command": "no-such-program"}, "there is no program 'no-such-program'"),
    ],
)
def test_what_a_server_lacks_is_named(
    entry: dict[str, str], reason: str, program_environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "servers.json").write_text(json.dumps({"mcpServers": {"first": entry}}))
    done = subprocess.run(
        [sys.executable, "-m", "mlxk", "run", "demo", "hi", "--mcp", "servers.json"],
        env={**os.environ, **program_environment},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert reason in done.stderr
