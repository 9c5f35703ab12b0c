"""A connection and its request: detached responses, disconnect callbacks, and limits for slow clients.

A request is executed in two steps, so that a response can outlive the worker thread that began it: the stream
dispatcher's thread writes it after the application has returned.
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
"""WSGI environment key of a function ``(on_start) -> DetachedResponse``; the application then returns an empty body."""

ENVIRON_ON_DISCONNECT = "mlxk.on_disconnect"
"""WSGI environment key of a function ``(callback) -> None``; the I/O thread calls back once, at a disconnect."""

MAX_UNREAD_BYTES = 256 * 1024
"""Unsent bytes after which a slow client is disconnected; far below the mark at which waitress blocks the writer."""


class DetachedResponse:
    """The body of a response, open until ``finish``.

    ``write`` and ``finish`` are called from one thread at a time, after ``on_start``; neither blocks.

    Args:
        task: The task of the request.
        on_start: Called when the headers are final and the worker thread is about to be released.
    """

    def __init__(self, task: WSGITask, on_start: Callable[[], None]) -> None:
        self._task = task
        self._on_start = on_start
        self._abandoned = False
        self._finished = threading.Lock()

    def start(self) -> None:
        """Call ``on_start``."""
        self._on_start()

    def abandon(self) -> None:
        """Call ``on_start`` for a response that is not sent, so that its writer ends: nothing can be written."""
        self._abandoned = True
        self._finished.acquire()
        self._on_start()

    def write(self, data: bytes) -> bool:
        """Send bytes; return False when the client has disconnected, or was disconnected for reading too slowly."""
        channel = self._task.channel
        if self._abandoned or not channel.connected or channel.will_close:
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
    """``run`` executes the application; ``service``, called by waitress, ends the response.

    Between the two, a detached response may be written for any length of time.
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
        """Execute the application; keep its exception for ``service``."""
        self.start()
        try:
            self.execute()
        except BaseException as failure:  # noqa: BLE001 - ``service`` raises it again, and waitress responds
            self._failure = failure

    def service(self) -> None:
        """End the response, or raise the application's exception: a truncated response must not look complete."""
        if self.channel.will_close:
            self.close_on_finish = True
            return
        try:
            if self._failure is not None:
                # Waitress only responds to an Exception; any other BaseException would leave the connection open.
                raise self._failure if isinstance(self._failure, Exception) else RuntimeError("application exited")
            self.finish()
        except OSError:
            self.close_on_finish = True

    def start_writer(self) -> None:
        """Start the writer of a detached response, which may end before this returns."""
        if self.detached is None:
            return
        if self._failure is None:
            self.detached.start()
        else:  # the application failed after it had detached the response
            self.detached.abandon()

    def _detach(self, on_start: Callable[[], None]) -> DetachedResponse:
        self.detached = DetachedResponse(self, on_start)
        return self.detached


class ProtocolErrorTask(ErrorTask):  # type: ignore[misc]  # waitress has no types
    """Responds to malformed or oversized requests with the error body of the API that they address."""

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
    """Return the WSGI environment of a refused request, as far as it was parsed, without its body."""
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
"""How long the remainder of a refused request is read and discarded."""

LINGER_BYTES = 64 * 2**20
"""How much of it is read."""


class ClientChannel(HTTPChannel):  # type: ignore[misc]  # waitress has no types
    """One connection. The I/O thread reads, worker threads serve, and they or the stream dispatcher write."""

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
        """Whether a request is being served, bytes are unsent, or the connection closes once they are sent."""
        return bool(self.requests or self.total_outbufs_len or self.close_when_flushed)

    @property
    def arriving(self) -> bool:
        """Whether a request has been received in part."""
        return self.request is not None

    def send_continue(self) -> None:
        """Send ``100 Continue``, unless the request is complete: it has no body, or was refused."""
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
        """Send pending bytes; after a refusal, shut down sending, and discard for a time what still arrives."""
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
        """Close, and discard unsent bytes. Callable from any thread."""
        self.will_close = True
        self.server.pull_trigger()

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        """Call a function once when the client disconnects, or at once if it already has."""
        self._callbacks.append(callback)
        if not self.connected:
            self._run_callbacks()

    def handle_close(self) -> None:
        """Close the connection and run the disconnect callbacks."""
        super().handle_close()
        self._run_callbacks()

    def service(self) -> None:
        """Run the application, then end the response, or leave that to the writer of a detached one."""
        if not self.requests:  # cancelled while it waited for a thread
            return
        request = self.requests[0]
        if self._task is None and request.error is None:
            task = self._task = TwoStepTask(self, request)
            if self.connected:
                task.run()
                task.start_writer()
                if task.open:
                    return
        self._callbacks = []
        self.used = True
        self._refused = request.error is not None
        super().service()

    def task_class(self, channel: "ClientChannel", request: HTTPRequestParser) -> TwoStepTask:
        """Return the task that ran already; waitress then ends its response."""
        # Once waitress has ended it, another thread may serve the connection's next request, so forget it first.
        task, self._task = self._task, None
        return task or TwoStepTask(channel, request)

    def _run_callbacks(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()
