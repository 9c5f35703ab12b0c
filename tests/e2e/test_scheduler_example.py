"""The scheduler of docs/cluster.md: it asks the servers that are ready, keeps conversations together, and goes on."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from serving.program import ServedProgram

pytestmark = [pytest.mark.e2e, pytest.mark.mlx]

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "scheduler.py"
KEY = "of-the-cluster"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A clean environment with the key."""
    return {
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ["PYTHONPATH"],
        "MLXK2_API_KEY": KEY,
        "MLX_DISABLE_COMPILE": "1",
    }


@pytest.fixture
def servers(tmp_path: Path, environment: dict[str, str]) -> Iterator[list[ServedProgram]]:
    """Two servers."""
    with (
        ServedProgram(tmp_path, environment, "--model", "demo") as first,
        ServedProgram(tmp_path, environment, "--model", "demo") as second,
    ):
        yield [first, second]


def scheduled(environment: dict[str, str], *arguments: str) -> tuple[int, list[str], str]:
    """Run the example; return its status, its lines, and what it said."""
    command = [sys.executable, str(EXAMPLE), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    return done.returncode, done.stdout.splitlines(), done.stderr


def address(server: ServedProgram) -> str:
    return f"http://127.0.0.1:{server.port}"


def test_the_scheduler_of_the_page_keeps_conversations_together_and_outlives_servers(
    servers: list[ServedProgram], environment: dict[str, str]
) -> None:
    addresses = [address(each) for each in servers]
    chosen: dict[str, str] = {}
    while set(chosen.values()) != set(addresses):  # their ports decide who gets which
        prompt = f"Question {len(chosen)}"
        status, lines, said = scheduled(environment, "demo", prompt, *addresses)
        assert (status, said) == (0, "")
        chosen[prompt] = lines[0]
        assert scheduled(environment, "demo", prompt, *reversed(addresses))[1] == lines
        assert len(chosen) < 25

    gone, stays = servers
    gone.process.send_signal(signal.SIGTERM)
    gone.process.wait(30)
    moved = next(prompt for prompt, where in chosen.items() if where == address(gone))
    status, lines, _ = scheduled(environment, "demo", moved, *addresses)
    assert (status, lines[0]) == (0, address(stays))

    status, _, said = scheduled(environment, "nowhere/none", "hello", *addresses)
    assert (status, said) == (1, "no server can answer for nowhere/none\n")
    assert scheduled({**environment, "MLXK2_API_KEY": "wrong"}, "demo", "hello", *addresses)[0] == 1


class Busy(BaseHTTPRequestHandler):
    """A server that reports much work, refuses for now, or breaks an answer off."""

    running = 0
    status = 429

    def do_GET(self) -> None:
        """Answer as a server that is ready."""
        body = {
            "/readyz": "{}",
            "/v1/models": '{"data": [{"id": "demo"}]}',
            "/metrics": f"mlxk_answers_running {self.running}\nmlxk_answers_waiting 0\n",
        }[self.path]
        self.reply(200, body.encode(), len(body))

    def do_POST(self) -> None:
        """Refuse, or begin an answer."""
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"error": {"message": "not now"}}).encode()
        self.reply(self.status, body, 1000 if self.status == 200 else len(body))
        self.close_connection = True

    def reply(self, status: int, body: bytes, stated: int) -> None:
        """Send a response whose stated length may be longer than it is."""
        self.send_response(status)
        self.send_header("Content-Length", str(stated))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(
    ("running", "status", "note"),
    [(0, 429, "429"), (0, 503, "503"), (0, 200, "IncompleteRead"), (50, 400, "")],
)
def test_servers_that_refuse_or_break_off_or_are_busy_are_passed_over(
    running: int, status: int, note: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    handler = type("Handler", (Busy,), {"running": running, "status": status})
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), handler) as busy,
        ServedProgram(tmp_path, environment, "--model", "demo") as server,
    ):
        threading.Thread(target=busy.serve_forever, daemon=True).start()
        other = f"http://127.0.0.1:{busy.server_port}"
        said: list[str] = []
        while len(said) < 25 and not (note and said and note in said[-1]):
            code, lines, words = scheduled(environment, "demo", f"Question {len(said)}", other, address(server))
            assert (code, lines[0]) == (0, address(server))
            said.append(words)
            if not note and len(said) == 4:
                break
        busy.shutdown()
    assert note in said[-1] if note else not any(said)


def test_a_request_that_no_server_would_take_is_refused_at_once(environment: dict[str, str]) -> None:
    handler = type("Handler", (Busy,), {"status": 400})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as busy:
        threading.Thread(target=busy.serve_forever, daemon=True).start()
        other = f"http://127.0.0.1:{busy.server_port}"
        code, _, said = scheduled(environment, "demo", "hello", other)
        busy.shutdown()
    assert code == 1
    assert said == f'{other} refuses: {{"error": {{"message": "not now"}}}}\n'
