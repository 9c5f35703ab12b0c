"""A connection and its request: detached responses, disconnect callbacks, and limits for slow clients.

A request is executed in two steps, so that a response can outlive the thread that began it; the stream dispatcher's
thread writes it after the application has returned.
"""

import io
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from waitress.channel import ClientDisconnected, HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.task import ErrorTask, WSGITask
from waitress.utilities import Error

from mlxk.entrypoints.http.errors import RETRY_SECONDS
from mlxk.entrypoints.http.request_scope import REQUEST_ID, request_id_from
from mlxk.entrypoints.http.server.parser import (
    RequestExpiredError,
    RequestParser,
    ServerStoppingError,
    error_from_waitress,
)

ENVIRON_DETACH = "mlxk.detach"
"""WSGI environment: ``(on_start) -> DetachedResponse``. The application then returns an empty body."""

ENVIRON_ON_DISCONNECT = "mlxk.on_disconnect"
"""WSGI environment: ``(callback) -> None``. The callback runs once, on the I/O thread, when the client disconnects."""

MAX_UNREAD_BYTES = 256 * 1024
"""Unread bytes after which a slow client is disconnected; far below waitress's mark at which writing blocks."""


class DetachedResponse:
    """The body of a response, open until ``finish``.

    ``write`` and ``finish`` are called from one thread at a time, after ``on_start`` was called; neither blocks.

    Args:
        task: The task that holds the request.
        on_start: Called once the headers are settled and the worker thread is about to be released.
    """

    def __init__(self, task: WSGITask, on_start: Callable[[], None]) -> None:
        self._task = task
        self._on_start = on_start
        self._finished = threading.Lock()

    def start(self) -> None:
        """Call ``on_start``."""
        self._on_start()

    def write(self, data: bytes) -> bool:
        """Send bytes; return False when the client has disconnected, or was disconnected for reading too slowly."""
        channel = self._task.channel
        if not channel.connected or channel.will_close:
            return False
        if channel.total_outbufs_len > MAX_UNREAD_BYTES:
            channel.drop()
            return False
        try:
            self._task.write(data)
        except ClientDisconnected:
            return False
        return True

    def finish(self) -> None:
        """End the body; later calls do nothing."""
        if self._finished.acquire(blocking=False):
            channel = self._task.channel
            channel.server.add_task(channel)


class TwoStepTask(WSGITask):  # type: ignore[misc]  # waitress has no types
    """``run`` executes the application; ``service``, which waitress calls, ends the response.

    In between, the writer of ``detached`` may write for any length of time.
    """

    def __init__(self, channel: HTTPChannel, request: HTTPRequestParser) -> None:
        super().__init__(channel, request)
        self.detached: DetachedResponse | None = None
        self._failure: BaseException | None = None

    @property
    def open(self) -> bool:
        """Whether the application has detached the response."""
        return self.detached is not None and self._failure is None

    def get_environment(self) -> dict[str, Any]:
        """Return waitress's environment, with functions to detach and to register disconnect callbacks."""
        environment: dict[str, Any] = super().get_environment()
        environment[ENVIRON_DETACH] = self._detach
        environment[ENVIRON_ON_DISCONNECT] = self.channel.on_disconnect
        return environment

    def run(self) -> None:
        """Execute the application; an exception is kept for ``service``."""
        self.start()
        try:
            self.execute()
        except BaseException as failure:  # noqa: BLE001 - raised again where waitress responds to it
            self._failure = failure

    def service(self) -> None:
        """End the response, or raise the exception of the application; a truncated one must not look complete."""
        if self.channel.will_close:
            self.close_on_finish = True
            return
        try:
            if self._failure is not None:
                # Waitress responds to an Exception; any other BaseException would leave the connection open.
                raise self._failure if isinstance(self._failure, Exception) else RuntimeError("application exited")
            self.finish()
        except OSError:
            self.close_on_finish = True

    def start_writer(self) -> None:
        """Start the writer of a detached response; the request may be over when this returns."""
        if self.detached is not None:
            self.detached.start()

    def _detach(self, on_start: Callable[[], None]) -> DetachedResponse:
        self.detached = DetachedResponse(self, on_start)
        return self.detached


class ProtocolErrorTask(ErrorTask):  # type: ignore[misc]  # waitress has no types
    """Responds to malformed or oversized requests with the error body of the API that they are meant for."""

    def execute(self) -> None:
        """Write the error and close the connection."""
        fault = self.request.error
        error = error_from_waitress(fault)
        identity = request_id_from(self.request.headers.get(REQUEST_ID.upper().replace("-", "_")))
        headers, body = self.channel.server.refusal(error, identity, environment_of(self.request))
        self.status = f"{fault.code} {fault.reason}"
        self.response_headers += [*headers.items(), (REQUEST_ID, identity)]
        if error.code in RETRY_SECONDS:
            self.response_headers.append(("Retry-After", str(RETRY_SECONDS[error.code])))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


def environment_of(request: HTTPRequestParser) -> dict[str, Any]:
    """Return the WSGI environment of a request that was refused, as far as it was read; without its body."""
    headers = {f"HTTP_{name}": value for name, value in request.headers.items()}
    return {
        "REQUEST_METHOD": getattr(request, "command", None) or "GET",
        "PATH_INFO": getattr(request, "path", None) or "/",
        "QUERY_STRING": "",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        **headers,
    }


LINGER_SECONDS = 2.0
"""How long the remainder of a refused request is read."""

LINGER_BYTES = 64 * 2**20
"""How much of the remainder is read."""


class ClientChannel(HTTPChannel):  # type: ignore[misc]  # waitress has no types
    """One connection. Read on the I/O thread, served on worker threads, written by them or by a detached writer."""

    error_task_class = ProtocolErrorTask
    parser_class = RequestParser
    request: HTTPRequestParser | None = None
    close_when_flushed: bool = False

    def __init__(self, *args: object, **kwargs: object) -> None:
        self._callbacks: list[Callable[[], None]] = []
        self._task: TwoStepTask | None = None
        self.began: float | None = None
        """Monotonic time of the first byte of the request being received; None between requests."""
        self.used = False
        """Whether a request has been served on this connection."""
        self.discard_until: float | None = None
        """Monotonic time until which received bytes are discarded; None while they are parsed."""
        self._refused = False
        self._discarded = 0
        super().__init__(*args, **kwargs)

    @property
    def busy(self) -> bool:
        """Whether a request is being served or a response is still to be sent, up to its orderly end."""
        return bool(self.requests or self.total_outbufs_len or self.close_when_flushed)

    @property
    def arriving(self) -> bool:
        """Whether a request has begun to arrive and is not complete."""
        return self.request is not None

    def send_continue(self) -> None:
        """Send ``100 Continue``, unless the request has no body or is refused."""
        if self.request is not None and self.request.completed:
            self.request.expect_continue = False
            return
        super().send_continue()

    def received(self, data: bytes) -> bool:
        """Parse received bytes, and record when a request began."""
        taken: bool = super().received(data)
        if self.request is None:
            self.began = None
        elif self.began is None:
            self.began = time.monotonic()
        return taken

    def readable(self) -> bool:
        """Whether to read from the socket."""
        return self.discard_until is not None or (not self._refused and bool(super().readable()))

    def handle_read(self) -> None:
        """Read from the client, or discard the remainder of a refused request."""
        if self.discard_until is None:
            super().handle_read()
            return
        try:
            self._discarded += len(self.recv(self.adj.recv_bytes))
        except OSError:
            self.handle_close()
        if self._discarded > LINGER_BYTES:
            self.handle_close()

    def handle_write(self) -> None:
        """Send pending bytes; after a refusal, stop sending and discard the remainder of the request for a moment."""
        refusing = self._refused and self.close_when_flushed and self.connected
        if not refusing or self.will_close:
            super().handle_write()
            return
        self._flush_exception(self._flush_some)
        if self.will_close or self.total_outbufs_len or not self.connected:
            return
        self.close_when_flushed = False
        self.discard_until = time.monotonic() + LINGER_SECONDS
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.handle_close()

    def expire(self) -> None:
        """Respond with 408 to a request that does not arrive completely, and close."""
        self._give_up(RequestExpiredError(""))

    def refuse_unfinished(self) -> None:
        """Respond with 503 to a request that is still arriving, and close."""
        self._give_up(ServerStoppingError(""))

    def _give_up(self, error: Error) -> None:
        with self.requests_lock:
            request = self.request
            if request is None or self.requests:
                return
            self.request = self.began = None
            self._refused = True
            request.error = error
            self.requests.append(request)
            self.server.add_task(self)

    def drop(self) -> None:
        """Close without sending the unsent bytes. Callable from any thread."""
        self.will_close = True
        self.server.pull_trigger()

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        """Call a function once when the client disconnects; at once if it already has."""
        self._callbacks.append(callback)
        if not self.connected:
            self._run_callbacks()

    def handle_close(self) -> None:
        """Close the connection and run the disconnect callbacks."""
        super().handle_close()
        self._run_callbacks()

    def service(self) -> None:
        """Run the application, then end the response, at once or after its writer has finished."""
        if not self.requests:  # cancelled while it waited for a thread
            return
        request = self.requests[0]
        if self._task is None and request.error is None:
            task = self._task = TwoStepTask(self, request)
            if self.connected:
                task.run()
                if task.open:
                    task.start_writer()
                    return
        self._callbacks = []
        self.used = True
        self._refused = request.error is not None
        super().service()

    def task_class(self, channel: "ClientChannel", request: HTTPRequestParser) -> TwoStepTask:
        """Return the task that already ran, so that waitress ends its response."""
        # Another thread may serve the connection's next request as soon as waitress has ended this one.
        task, self._task = self._task, None
        return task or TwoStepTask(channel, request)

    def _run_callbacks(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()
