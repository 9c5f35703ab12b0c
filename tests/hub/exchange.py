"""HTTP of the loopback hub: one request and its answer, the log of calls, and faults on the way."""

import json
import os
import re
import socket
import struct
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import attrs

if TYPE_CHECKING:
    from hub.server import HubServer, LoopbackHub

PIECE = 65536


@attrs.define
class Call:
    """One request, as the hub saw it, and what it answered."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """Names in lower case."""
    origin: str
    """"hub" or "cdn"."""
    body: bytes = b""
    status: int = 0
    sent: int = 0
    """Bytes of the body written."""
    started: float = attrs.field(factory=time.monotonic)

    @property
    def range(self) -> str | None:
        """The Range header."""
        return self.headers.get("range")


@attrs.define
class Fault:
    """Something that goes wrong with matching requests."""

    pattern: str
    """Searched in the path."""
    method: str | None = None
    times: int = 1
    """How many matching requests it hits; -1 means all."""
    skip: int = 0
    """How many matching requests pass first."""
    status: int | None = None
    """Answer this instead."""
    headers: Mapping[str, str] = attrs.field(factory=dict)
    """Sent with ``status``, or in place of the regular ones."""
    delay: float = 0.0
    """Seconds before the answer."""
    rate: float | None = None
    """Bytes per second."""
    drop_after: int | None = None
    """Close the connection after so many bytes of the body."""
    stall_after: int | None = None
    """Send nothing more after so many bytes of the body, and keep the connection open for a minute."""
    reset: bool = False
    """Close with a reset."""
    corrupt_at: int | None = None
    """Flip the byte at this offset of the file."""
    loses_answer: bool = False
    """Do what is asked, and answer 503."""
    ignore_range: bool = False
    """Answer a range request with the whole file."""

    @property
    def shapes_body(self) -> bool:
        """Whether the body must be sent piece by piece."""
        return any(value is not None for value in (self.rate, self.drop_after, self.stall_after, self.corrupt_at))


NO_FAULT = Fault("")


class RefusalError(Exception):
    """The hub says no, with a status, a message and the headers its client looks at."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        body: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": message, **(body or {})}
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}


class Exchange(BaseHTTPRequestHandler):
    """One connection; every request on it is routed, logged and answered."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    call: Call
    fault: Fault

    @property
    def hub(self) -> "LoopbackHub":
        """The hub this connection belongs to."""
        return cast("HubServer", self.server).hub

    def setup(self) -> None:
        """Keep little in the kernel's buffers, so that bytes counted as sent are nearly bytes received."""
        if self.hub.send_buffer:
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.hub.send_buffer)
        super().setup()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing; the calls are logged as values."""

    def answer(self) -> None:
        """Read the request, log it, and let its route answer."""
        url = urlsplit(self.path)
        self.call = Call(
            method=self.command,
            path=unquote(url.path),
            query={name: values[-1] for name, values in parse_qs(url.query).items()},
            headers={name.lower(): value for name, value in self.headers.items()},
            origin=cast("HubServer", self.server).origin,
            body=self._read_body(),
        )
        self.fault = self.hub.log(self.call)
        try:
            time.sleep(self.fault.delay)
            if self.fault.status:
                raise RefusalError(self.fault.status, "injected fault", headers=self.fault.headers)
            self.hub.route(self, url.path)
        except RefusalError as refusal:
            self.json(refusal.body, refusal.status, refusal.headers)
        except (BrokenPipeError, ConnectionResetError, ValueError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - names the server asks for

    def json(self, value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Answer with a JSON document."""
        if self.fault.loses_answer:
            value, status = {"error": "injected fault"}, 503
        content = json.dumps(value).encode()
        self._head(status, len(content), {"Content-Type": "application/json", **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(content)
            self.call.sent += len(content)

    def empty(self, status: int, headers: Mapping[str, str]) -> None:
        """Answer without a body."""
        self._head(status, 0, headers)

    def file(self, path: str, headers: Mapping[str, str]) -> None:
        """Answer with a file, or the range of it that was asked for."""
        size = os.path.getsize(path)
        status, start, stop = 200, 0, size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and not self.fault.ignore_range:
            start, stop = int(asked[1]), min(int(asked[2] or size - 1) + 1, size)
            if start >= size:
                raise RefusalError(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{size}"})
            status, headers = 206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        plain = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        self._head(status, stop - start, {**plain, **headers, **self.fault.headers})
        if self.command == "HEAD":
            return
        with open(path, "rb") as content:
            if self.fault.shapes_body:
                content.seek(start)
                self._send_slowly(content, start, stop - start)
            else:
                self.wfile.flush()
                self.call.sent += self.connection.sendfile(content, start, stop - start)

    def _head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.call.status = status
        self.send_response_only(status)
        for name, value in {"Content-Length": str(length), "X-Request-Id": "loopback", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_slowly(self, content: Any, start: int, length: int) -> None:
        fault, began = self.fault, time.monotonic()
        cut = next((cut for cut in (fault.drop_after, fault.stall_after) if cut is not None), length)
        while self.call.sent < min(length, cut):
            count = min(PIECE, min(length, cut) - self.call.sent, max(int((fault.rate or 1e9) / 20), 1))
            piece, at = bytearray(content.read(count)), start + self.call.sent
            if fault.corrupt_at is not None and at <= fault.corrupt_at < at + count:
                piece[fault.corrupt_at - at] ^= 0xFF
            self.wfile.write(piece)
            self.call.sent += count
            if fault.rate:
                time.sleep(max(0.0, self.call.sent / fault.rate - (time.monotonic() - began)))
        if cut < length:
            self._break(stalls=fault.stall_after is not None)

    def _break(self, stalls: bool) -> None:
        if stalls:
            self.hub.stopped.wait(60)
        elif self.fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True
        self.connection.close()

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = bytearray()
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(body)
