"""``mlxk serve`` as installed, in processes of its own, with standard error, limits and environment as a test wants."""

import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

CHAT = "/v1/chat/completions"
QUESTION: dict[str, Any] = {
    "model": "demo",
    "messages": [{"role": "user", "content": "What is mlxk?"}],
    "max_tokens": 3,
    "temperature": 0,
}

SECONDS = 60.0
"""Limit of one request, generous for a machine that does other things."""


class ServedProgram:
    """A started server, ended with the block.

    Args:
        directory: Its working directory.
        environment: Its environment.
        flags: Of ``mlxk serve``.
        stderr: Where its log goes.
        before: Runs in the new process before the program, such as to set a limit.
    """

    def __init__(
        self,
        directory: Path,
        environment: dict[str, str],
        *flags: str,
        stderr: int | IO[bytes] = subprocess.DEVNULL,
        before: Callable[[], None] | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlxk", "serve", "--port", "0", "--json", *flags],
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=directory,
            env=environment,
            text=True,
            preexec_fn=before,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line == "{\n":  # an error at the start, over several lines
            line += self.process.stdout.read()
        self.first: dict[str, Any] = json.loads(line or "{}")
        self.port: int = self.first["data"]["port"] if self.first.get("data") else 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()

    def ask(self, method: str, path: str, body: object | bytes | None = None, **headers: str) -> tuple[int, Any]:
        """Send a request; return status and body, parsed when it is JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, data, {"Content-Type": "application/json", **named})
            response = connection.getresponse()
            answer = response.read()
            kind = (response.getheader("Content-Type") or "").partition(";")[0]
            return response.status, json.loads(answer) if kind == "application/json" else answer
        finally:
            connection.close()

    def chat(self, **fields: Any) -> int:
        """Ask in a conversation; return the status."""
        return self.ask("POST", CHAT, {**QUESTION, **fields})[0]
