"""The life of a server: its worker dies and is replaced, signals end it, and nothing outlives what it belongs to."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving.running import events_of, eventually, read_all

pytestmark = pytest.mark.e2e

SCRIPT = Path(__file__).parents[1] / "serving" / "scripted_serve.py"
PATH = "/v1/chat/completions"


class Server:
    """A server in processes of its own."""

    def __init__(self, directory: Path, environment: dict[str, str], **settings: Any) -> None:
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(SCRIPT), json.dumps({"port": 0, **settings})],
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=directory,
                env=environment,
                text=True,
            )
        assert self.process.stdout is not None
        self.first: dict[str, Any] = json.loads(self.process.stdout.readline() or "{}")
        self.port: int = self.first.get("port", 0)

    @property
    def log(self) -> str:
        """What was logged so far."""
        return self._log.read_text(encoding="utf-8")

    def worker(self) -> int:
        """Return the process id of the present worker, waiting for it to be there."""
        for _ in range(100):
            found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
            if found.stdout.split():
                return int(found.stdout.split()[-1])
            time.sleep(0.05)
        raise AssertionError(f"there is no worker: {self.log}")

    def ask(self, prompt: str = "go", max_tokens: int = 3, stream: bool = False) -> socket.socket:
        """Send a request and return its connection."""
        messages = [{"role": "user", "content": prompt}]
        body = {"model": "demo", "messages": messages, "max_tokens": max_tokens, "stream": stream}
        data = json.dumps(body).encode()
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
        try:
            connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        except OSError:
            connection.close()
            raise
        return connection

    def get(self, path: str) -> int:
        """Return the status of an address."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request("GET", path)
            return connection.getresponse().status

    def end(self) -> None:
        """Kill what is left."""
        self.process.kill()  # the worker ends with it
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path, program_environment: dict[str, str]) -> Iterator[Start]:
    """Start servers, and end them with the test."""
    started: list[Server] = []

    def begin(**settings: Any) -> Server:
        started.append(Server(tmp_path, program_environment, **settings))
        return started[-1]

    yield begin
    for server in started:
        if server.process.poll() is None:
            server.end()
        elif server.process.stdout is not None:
            server.process.stdout.close()


def gone(process: int) -> bool:
    """Whether a process does not exist any more."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_worker_killed_under_load_refuses_nobody_and_is_replaced(start: Start) -> None:
    server = start()
    outcomes: list[str] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            try:
                answer = read_all(server.ask())
                outcomes.append("answered" if b'"finish_reason": "length"' in answer else "cut")
            except ConnectionRefusedError:
                outcomes.append("refused")
            except OSError:
                outcomes.append("cut")

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    killed = server.worker()
    os.kill(killed, signal.SIGKILL)
    began = time.monotonic()
    assert b'"finish_reason": "length"' in read_all(server.ask())
    seconds = time.monotonic() - began
    stop.set()
    for thread in threads:
        thread.join()
    assert seconds < 60
    assert "refused" not in outcomes
    assert outcomes.count("answered") > 8
    assert server.worker() != killed
    assert "the worker died and is restarted" in server.log


def test_a_worker_that_dies_of_a_request_is_replaced(start: Start) -> None:
    server = start()
    assert read_all(server.ask("die")) == b""
    assert b"word" in read_all(server.ask())


def test_workers_that_keep_dying_are_given_up(start: Start, tmp_path: Path) -> None:
    server = start(log_level="error")
    for _ in range(6):
        try:
            read_all(server.ask("die"))
        except OSError:
            break
    assert server.process.wait(60) == 1
    assert server.process.stdout is not None
    assert "died 6 times" in json.loads(server.process.stdout.readline())["message"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_streams_finish(start: Start, number: signal.Signals) -> None:
    server = start()
    stream = server.ask(max_tokens=60, stream=True)
    assert stream.recv(1)
    server.process.send_signal(number)
    events = events_of(b"H" + read_all(stream))
    assert events[-1] == "[DONE]"
    assert len(events) == 63
    assert server.process.wait(60) == 0
    with pytest.raises(OSError):
        server.ask()


def test_a_second_signal_hurries(start: Start) -> None:
    server = start(drain_seconds=60)
    stream = server.ask(max_tokens=5000, stream=True)
    assert stream.recv(1)
    server.process.send_signal(signal.SIGINT)
    assert eventually(lambda: server.get("/readyz") == 503)
    server.process.send_signal(signal.SIGINT)
    assert events_of(b"H" + read_all(stream))[-1]["error"]["type"] == "server_shutdown"
    assert server.process.wait(60) == 0


def test_a_third_signal_kills_even_a_worker_that_cannot_listen(start: Start) -> None:
    server = start(drain_seconds=60)
    worker = server.worker()
    os.kill(worker, signal.SIGSTOP)
    signals = 0
    while server.process.poll() is None and signals < 100:  # some may arrive as one
        server.process.send_signal(signal.SIGTERM)
        signals += 1
        time.sleep(0.1)
    assert signals >= 3
    assert server.process.wait(60) in {1, -signal.SIGTERM}  # a further one may meet its last moment
    assert gone(worker)


def test_a_worker_does_not_outlive_its_supervisor(start: Start) -> None:
    server = start()
    worker = server.worker()
    server.process.kill()
    assert eventually(lambda: gone(worker))


def test_changed_source_restarts_the_worker_after_what_it_does(start: Start, tmp_path: Path) -> None:
    server = start(reload=True)
    first = server.worker()
    stream = server.ask(max_tokens=60, stream=True)
    assert stream.recv(1)
    (tmp_path / "changed.py").write_text("")
    events = events_of(b"H" + read_all(stream))
    assert events[-1] == "[DONE]"
    assert b'"finish_reason"' in read_all(server.ask())
    assert eventually(lambda: gone(first))
    assert server.worker() != first
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0


def test_requests_sent_before_the_worker_is_up_are_answered(start: Start) -> None:
    server = start()
    os.kill(server.worker(), signal.SIGKILL)
    waiting = [server.ask() for _ in range(16)]
    answers = [read_all(connection) for connection in waiting]
    assert sum(b'"finish_reason"' in answer for answer in answers) >= 15


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("flags", [[], ["--no-supervisor"]], ids=["supervised", "alone"])
def test_a_signal_before_the_server_is_ready_says_so(
    flags: list[str], number: signal.Signals, program_environment: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "mlxk", "serve", "--model", "demo", "--json", *flags]
    for _ in range(10):
        code, output, errors = _signalled_at_once(command, number, program_environment, tmp_path)
        assert b"Traceback" not in errors
        if code:
            break
        # On a busy machine the model may be in memory first; then it is an ordinary end of a server.
        assert json.loads(output)["status"] == "success"
    assert code == 130, (output, errors)
    assert json.loads(output)["error"]["type"] == "interrupted"


def _signalled_at_once(
    command: list[str], number: signal.Signals, environment: dict[str, str], folder: Path
) -> tuple[int, bytes, bytes]:
    """Return how a server ends that gets a signal when it has begun to listen: exit code, output, errors."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    with subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=folder
    ) as process:
        assert eventually(lambda: listens(port))
        if "--no-supervisor" in command:  # in one process the signals are taken over after the sockets
            assert process.stderr is not None
            assert b"serving" in process.stderr.readline()
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


BORN_INTERRUPTED = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.kill(os.getpid(), signal.SIGTERM)
os.execv(sys.executable, [sys.executable, "-m", "mlxk", *sys.argv[1:]])
"""
"""Becomes the program with a signal waiting, which arrives when somebody takes signals over."""


@pytest.mark.parametrize("flags", [[], ["--no-supervisor"]], ids=["supervised", "alone"])
def test_a_signal_from_before_there_was_a_worker_ends_it_at_once(
    flags: list[str], program_environment: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", BORN_INTERRUPTED, "serve", "--port", "0", "--model", "demo", "--json", *flags]
    ended = subprocess.run(command, capture_output=True, env=program_environment, cwd=tmp_path, timeout=60, check=False)
    assert ended.returncode == 130, ended
    document = json.loads(ended.stdout)
    assert document["command"] == "serve"
    assert document["error"] == {"type": "interrupted", "message": "stopped before the server was ready"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full exists on Linux only")
@pytest.mark.parametrize("flags", [[], ["--no-supervisor"]], ids=["supervised", "alone"])
def test_a_server_that_cannot_say_it_is_ready_ends(
    flags: list[str], program_environment: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "mlxk", "serve", "--port", "0", *flags]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, env=program_environment, cwd=tmp_path, timeout=60, check=False
        )
    assert ended.returncode == 1
    assert b"serve: Error: standard output cannot be written: No space left on device" in ended.stderr
    assert b"Traceback" not in ended.stderr


@pytest.mark.parametrize("flags", [[], ["--no-supervisor"], ["--json"]], ids=["supervised", "alone", "json"])
def test_a_server_whose_reader_has_gone_ends_in_silence(
    flags: list[str], program_environment: dict[str, str], tmp_path: Path
) -> None:
    unread, pipe = os.pipe()
    os.close(unread)
    command = [sys.executable, "-m", "mlxk", "serve", "--port", "0", "--log-level", "error", *flags]
    ended = subprocess.run(
        command, stdout=pipe, stderr=subprocess.PIPE, env=program_environment, cwd=tmp_path, timeout=60, check=False
    )
    os.close(pipe)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_a_hangup_that_is_ignored_does_not_end_the_server(start: Start) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited, as from nohup
    try:
        server = start()
    finally:
        signal.signal(signal.SIGHUP, before)
    server.process.send_signal(signal.SIGHUP)
    assert b'"finish_reason"' in read_all(server.ask())
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0


def test_a_hangup_ends_the_server(start: Start) -> None:
    server = start()
    server.process.send_signal(signal.SIGHUP)
    assert server.process.wait(60) == 0


def test_a_signal_while_a_worker_is_being_replaced_ends_in_order(start: Start) -> None:
    server = start()
    os.kill(server.worker(), signal.SIGKILL)
    time.sleep(0.3)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0


def listens(port: int) -> bool:
    """Whether something listens on a port."""
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_readiness_waits_for_the_model_and_a_model_that_fails_ends_the_server(start: Start, tmp_path: Path) -> None:
    server = start(model="demo")
    assert server.get("/readyz") == 200
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    (tmp_path / "fail-preload").touch()
    failing = start(model="demo")
    assert failing.first["message"] == "the model cannot be loaded"
    assert failing.process.wait(60) == 1
