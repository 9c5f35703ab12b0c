"""A server on a real loopback socket, in a thread of the test's process."""

import http.client
import json
import socket
import threading
import time
from types import TracebackType
from typing import Any, Self

from serving import contract
from serving.parts import Parts

from mlxk.entrypoints.http.server.server import HttpServer, ServerLimits


class RunningServer:
    """Serves an application until the block is left.

    Args:
        parts: The application.
        limits: What clients may use.
    """

    def __init__(self, parts: Parts, limits: ServerLimits | None = None) -> None:
        self.parts = parts
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        application = parts.application
        self.server = HttpServer(
            application.wsgi,
            [self._socket],
            limits or ServerLimits(),
            application.refusal,
            application.drain,
            application.abort,
        )
        self.ended_well: bool | None = None
        self.stops = 0
        self._thread = threading.Thread(target=self._run, name="test-server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.parts.close()

    def _run(self) -> None:
        self.ended_well = self.server.run()

    def stop(self) -> None:
        """Drain and wait for the end, in a hurry after ten seconds; a third stop would end the process."""
        for _ in range(2 - self.stops):
            if self._thread.is_alive():
                self.hurry()
            self._thread.join(10)

    def hurry(self) -> None:
        """Begin to drain; the second time, stop waiting."""
        self.stops += 1
        self.server.stop()

    def post(self, path: str, body: object, **headers: str) -> tuple[int, dict[str, str], Any]:
        """Send JSON and return status, headers and the JSON that came back."""
        return self.request("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], Any]:
        """Return status, headers and JSON of an address."""
        return self.request("GET", path, None, headers)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """Return status, headers and the body, parsed when it is JSON, and held against the contract."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            data = response.read()
            kept = {name.lower(): value for name, value in response.getheaders()}
            kind = kept.get("content-type", "").partition(";")[0]
            parsed = json.loads(data) if data and kind == "application/json" else data
            # A schema of the contract knows strings, not bytes.
            spelled = parsed.decode("latin-1") if kind.startswith("audio/") else parsed
            spelled = parsed.decode() if kind.startswith("text/") else spelled
            contract.check(method, path, response.status, kind, spelled)
            return response.status, kept, parsed
        finally:
            connection.close()

    def connect(self, timeout: float = 60.0) -> socket.socket:
        """Return a connection without having said anything on it."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def raw(self, path: str, body: object | None = None, method: str | None = None, extra: str = "") -> socket.socket:
        """Send a request on a connection of its own and return the connection."""
        connection = self.connect()
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method or ('GET' if body is None else 'POST')} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{extra}"
        kind = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n" if body is not None else ""
        try:
            connection.sendall(f"{head}{kind}\r\n".encode() + data)
        except OSError:
            connection.close()
            raise
        return connection


def read_all(connection: socket.socket) -> bytes:
    """Return everything until the other side closes, and close."""
    with connection:
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
        return b"".join(parts)


def events_of(response: bytes) -> list[Any]:
    """Return the events of a stream, as JSON held against the contract, ``[DONE]`` as text."""
    head, _, body = response.partition(b"\r\n\r\n")
    if b"chunked" in head.lower():
        body = unchunked(body)
    lines = [line[6:] for line in body.decode().split("\n") if line.startswith("data: ")]
    events = [line if line == "[DONE]" else json.loads(line) for line in lines]
    for event in events:
        contract.check_event(event)
    return events


def unchunked(body: bytes) -> bytes:
    """Return the body of a chunked response, up to where it ends or breaks off."""
    parts = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        parts.append(rest[:length])
        body = rest[length + 2 :]
        if not length:
            break
    return b"".join(parts)


def eventually(condition: Any, seconds: float = 60.0) -> bool:
    """Wait until a condition holds; return whether it came to hold.

    The limit is only there for what never comes to hold: a machine in use may take long for what is done at once.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.002)
    return bool(condition())
