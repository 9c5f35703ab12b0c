"""``mlxk launch --url`` at servers of other makes, and at what is no server of models."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import attrs
import pexpect
import pytest
import this_process

pytestmark = pytest.mark.e2e


@attrs.define
class Answering:
    """A server that answers every request with the same bytes."""

    socket: socket.socket
    answer: bytes = b""
    requests: list[bytes] = attrs.field(factory=list)

    @property
    def address(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def serve(self) -> None:
        """Answer until the socket is closed."""
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                with connection, contextlib.suppress(OSError):
                    self.requests.append(connection.recv(65536))
                    connection.sendall(self.answer)


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[Answering]:
    """Run a server within a block."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = Answering(listening, answer)
        thread = threading.Thread(target=server.serve)
        thread.start()
        try:
            yield server
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def document(content: bytes, headers: bytes = b"") -> bytes:
    """Return an answer with a JSON document."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n" + headers + b"\r\n" + content


@pytest.fixture
def environment(tmp_path: Path, program_environment: dict[str, str]) -> dict[str, str]:
    """Return an environment with a program that stands in for Codex, and with a key."""
    program = tmp_path / "bin" / "codex"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s " "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{program_environment['PATH']}"
    return {**program_environment, "PATH": path, "MLXK2_API_KEY": "kéy"}


def launch(environment: dict[str, str], *flags: str) -> "subprocess.CompletedProcess[str]":
    """Launch the program that stands in for Codex, without a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "mlxk", "launch", "codex", *flags],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=60,
    )


def here(environment: dict[str, str], *flags: str) -> "subprocess.CompletedProcess[str]":
    """Do the same in this process, where no program is to be started."""
    return this_process.run(("launch", "codex", *flags), environment, Path(environment["HOME"]))


NO_SERVERS = {
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "nothing": b"",
    "a length that is none": document(b"{}", b"Transfer-Encoding: chunked\r\n"),
    "a chunk that is cut off": document(b'40\r\n{"data": [', b"Transfer-Encoding: chunked\r\n"),
    "a document of another kind": document(b'{"data": 1}'),
    "models that are no objects": document(b'{"data": ["one"]}'),
    "endless nesting": document(b"[" * 200_000),
}


@pytest.mark.parametrize("answer", NO_SERVERS.values(), ids=NO_SERVERS)
def test_what_is_no_server_of_models_is_said(environment: dict[str, str], answer: bytes) -> None:
    with answering(answer) as server:
        done = here(environment, "--url", server.address)
        assert done.stderr.splitlines() == [
            f"launch: Error: no server of models answers at {server.address}",
            "Start one: mlxk serve. Or leave out --url.",
        ]
        assert (done.returncode, done.stdout, len(server.requests)) == (1, "", 1)


def test_an_answer_is_read_up_to_a_limit(environment: dict[str, str]) -> None:
    with answering(document(b" " * 5 * 2**20 + b'{"data": []}')) as server:
        done = here(environment, "--url", server.address)
    assert (done.returncode, "is larger than 4 MiB" in done.stderr) == (1, True), done.stderr


def test_a_redirection_does_not_get_the_key(environment: dict[str, str]) -> None:
    with answering(document(b'{"data": []}')) as other:
        redirection = f"HTTP/1.1 302 Found\r\nLocation: {other.address}/v1/models\r\nConnection: close\r\n\r\n"
        with answering(redirection.encode()) as server:
            done = here(environment, "--url", server.address)
    assert (done.returncode, other.requests) == (1, [])
    assert "answers with status 302\nIt redirects, which is not followed" in done.stderr
    assert "Authorization: Bearer kéy\r\n".encode() in server.requests[0]


FOREIGN = [
    {"id": "words", "context_length": "8k", "size_bytes": "4 GB", "supports_tools": "yes", "loaded": "no"},
    {"id": "numbers", "context_length": 10**400, "size_bytes": 10**400, "supports_tools": 1, "loaded": 1},
    {"id": "others", "context_length": [65536], "size_bytes": {"bytes": 1}, "supports_tools": None, "loaded": []},
    {"id": "less", "context_length": -1, "size_bytes": -1.5},
    {"id": "odd\u0000name"},
    {"id": "half\ud83d"},
    {"id": ""},
    {"id": 7},
    {"id": "known", "context_length": 65536, "size_bytes": 2_000_000, "supports_tools": True, "loaded": True},
]


def test_what_a_foreign_server_says_about_models_may_be_anything(environment: dict[str, str]) -> None:
    with answering(document(json.dumps({"data": FOREIGN}).encode())) as server:
        terminal = pexpect.spawn(
            sys.executable,
            ["-m", "mlxk", "launch", "codex", "--url", server.address],
            env={**environment, "TERM": "dumb"},
            encoding="utf-8",
            timeout=60,
            dimensions=(30, 100),
        )
        for number, name in enumerate(("words", "numbers", "others", "less"), 1):
            terminal.expect(rf"{number} \| {name} +\| unknown +\| unknown +\| *\r")
        terminal.expect(r"5 \| known +\| 2\.0MB +\| 65,536 +\| loaded")
        terminal.expect_exact("Which model? [1-5]: ")
        terminal.sendline("numbers")
        terminal.expect_exact('model="numbers"')
        terminal.expect_exact("model_context_window=32768")
        terminal.expect(pexpect.EOF)
        terminal.wait()
        assert terminal.exitstatus == 0


@pytest.mark.parametrize(
    "url", ["http://", "http://127.0.0.1:80a", "http://127.0.0.1:99999", "http://[::1", "http://a b", "http://a:b@c"]
)
def test_an_address_that_is_none_is_refused(environment: dict[str, str], url: str) -> None:
    done = here(environment, "--url", url)
    assert (done.returncode, f"--url: '{url}' is not an address" in done.stderr) == (2, True), done.stderr


NAMED = document(b'{"data": [{"id": "org/Poet-4bit"}, {"id": "org/Poet-8bit"}, {"id": "other/Poet-4bit"}]}')


@pytest.mark.parametrize(
    ("typed", "meant"), [("ORG/poet-4bit", "org/Poet-4bit"), ("poet-8BIT", "org/Poet-8bit"), ("8b", "org/Poet-8bit")]
)
def test_a_name_means_a_model_of_a_server_as_it_means_one_here(
    environment: dict[str, str], typed: str, meant: str
) -> None:
    with answering(NAMED) as server:
        done = launch(environment, "--url", server.address, "-m", typed)
    assert (done.returncode, f'model="{meant}"' in done.stdout) == (0, True), done.stderr


def test_a_name_that_two_models_of_a_server_have_is_refused(environment: dict[str, str]) -> None:
    with answering(NAMED) as server:
        done = here(environment, "--url", server.address, "-m", "Poet-4bit")
        nothing = here(environment, "--url", server.address, "-m", "")
    assert (done.returncode, done.stderr.splitlines()[:3]) == (
        1,
        ["launch: Error: 'Poet-4bit' fits 2 models", "  org/Poet-4bit", "  other/Poet-4bit"],
    )
    assert (nothing.returncode, "the server has no model ''" in nothing.stderr) == (1, True)


@pytest.mark.parametrize(("key", "status", "said"), [("\x04", 2, "no model was chosen"), ("\x03", 130, "interrupted")])
def test_a_question_that_is_left_ends_its_line(environment: dict[str, str], key: str, status: int, said: str) -> None:
    with answering(NAMED) as server:
        terminal = pexpect.spawn(
            sys.executable,
            ["-m", "mlxk", "launch", "codex", "--url", server.address],
            env={**environment, "TERM": "dumb"},
            encoding="utf-8",
            timeout=60,
        )
        terminal.expect_exact("Which model? [1-3]: ")
        terminal.sendline("4")
        terminal.expect_exact("Write a number from 1 to 3")
        terminal.expect_exact("Which model? [1-3]: ")
        terminal.send(key)
        terminal.expect(pexpect.EOF)
        terminal.wait()
    assert (terminal.exitstatus, f"\r\nlaunch: Error: {said}" in terminal.before) == (status, True), terminal.before


@pytest.mark.parametrize("content", [b"\0\1\2", b"#!/no/such/interpreter\n"], ids=["no program", "no interpreter"])
def test_a_program_that_cannot_be_run_is_named(environment: dict[str, str], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bin" / "codex").write_bytes(content)
    with answering(document(b'{"data": [{"id": "m"}]}')) as server:
        done = launch(environment, "--url", server.address, "-m", "m")
    assert (done.returncode, done.stdout) == (1, "")
    assert "/codex' cannot be run: " in done.stderr
    assert done.stderr.splitlines()[-1] == "Run it by itself, or install it again."


def test_a_program_that_heeds_no_signal_is_killed_in_the_end(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "bin" / "codex").write_text("#!/bin/sh\ntrap '' TERM\necho started\nexec sleep 100\n")
    with answering(document(b'{"data": [{"id": "m"}]}')) as server:
        command = [sys.executable, "-m", "mlxk", "launch", "codex", "--url", server.address, "-m", "m"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            process.terminate()
            assert process.wait(60) == 128 + signal.SIGKILL
            assert process.stdout.read() == ""  # nothing has it open any more
