"""A connection and its request: detached responses, disconnects, and limits for slow clients.

A request is executed in two steps, so that a response can outlive the thread that began it.
"""

import json
import socket
import time
from collections.abc import Callable
from typing import Any

from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.task import ErrorTask, WSGITask
from waitress.utilities import BadRequest, Error

from mlxk.domain.errors import (
    InternalError,
    MlxkError,
    PayloadTooLargeError,
    RequestTimeoutError,
    ServerShutdownError,
    ValidationError,
)
from mlxk.entrypoints.http.errors import RETRY_SECONDS, error_document
from mlxk.entrypoints.http.request_scope import REQUEST_ID, wished_id
from mlxk.entrypoints.http.server.detached import ENVIRON_DETACH, ENVIRON_ON_DISCONNECT, DetachedResponse


class TwoStepTask(WSGITask):  # type: ignore[misc]  # waitress has no types
    """``run`` executes the application; ``service``, which waitress calls, ends the response.

    Between the two any time may pass, and ``detached`` is then who writes.
    """

    def __init__(self, channel: HTTPChannel, request: HTTPRequestParser) -> None:
        super().__init__(channel, request)
        self.detached: DetachedResponse | None = None
        self._failure: BaseException | None = None

    @property
    def open(self) -> bool:
        """Whether the application has left the response to a writer."""
        return self.detached is not None and self._failure is None

    def get_environment(self) -> dict[str, Any]:
        """Return waitress's environment, with ways to detach and to hear of the client's going."""
        environment: dict[str, Any] = super().get_environment()
        environment[ENVIRON_DETACH] = self._detach
        environment[ENVIRON_ON_DISCONNECT] = self.channel.on_disconnect
        return environment

    def run(self) -> None:
        """Execute the application; what it raises is kept for ``service``."""
        self.start()
        try:
            self.execute()
        except BaseException as failure:  # noqa: BLE001 - kept and raised again where waitress answers it
            self._failure = failure

    def service(self) -> None:
        """End the response, or raise what the application raised; one that was broken off must not look whole."""
        if self.channel.will_close:
            self.close_on_finish = True
            return
        try:
            if self._failure is not None:
                # Waitress answers exceptions; anything graver would leave the connection hanging.
                raise self._failure if isinstance(self._failure, Exception) else RuntimeError("application exited")
            self.finish()
        except OSError:
            self.close_on_finish = True

    def start_writer(self) -> None:
        """Let the writer of a detached response begin; the request may be over when this returns."""
        if self.detached is not None:
            self.detached.start()

    def _detach(self, on_start: Callable[[], None]) -> DetachedResponse:
        self.detached = DetachedResponse(self, on_start)
        return self.detached


class JsonErrorTask(ErrorTask):  # type: ignore[misc]  # waitress has no types
    """Answers what is no HTTP, or too much of it, in the same shape as every other error."""

    def execute(self) -> None:
        """Write the error and close the connection."""
        fault = self.request.error
        error = _translated(fault)
        identity = wished_id(self.request.headers.get(REQUEST_ID.upper().replace("-", "_")))
        body = json.dumps(error_document(error, identity)).encode()
        self.status = f"{fault.code} {fault.reason}"
        self.response_headers += [("Content-Type", "application/json"), (REQUEST_ID, identity)]
        if error.code in RETRY_SECONDS:
            self.response_headers.append(("Retry-After", str(RETRY_SECONDS[error.code])))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


def _translated(fault: Error) -> MlxkError:
    if fault.code == 408:
        return RequestTimeoutError("The request was not sent completely in time.")
    if fault.code == 413:
        return PayloadTooLargeError("The request body is larger than the server takes.")
    if fault.code == 431:
        return PayloadTooLargeError("The request headers are larger than the server takes.")
    if fault.code == 503:
        return ServerShutdownError("The server is shutting down.", hint="Send the request again in a moment.")
    if fault.code >= 500 and fault.code != 501:
        return InternalError("The server met an unexpected condition; its log says more.")
    return ValidationError("The request is not well-formed HTTP.")


LINGER_SECONDS = 2.0
"""How long the rest of a refused request is read."""

LINGER_BYTES = 64 * 2**20
"""How much of it is read."""


class RequestExpiredError(Error):  # type: ignore[misc]  # waitress has no types
    """A request that did not arrive completely in its time."""

    code = 408
    reason = "Request Timeout"


class ServerStoppingError(Error):  # type: ignore[misc]  # waitress has no types
    """A request that is still arriving when the server stops."""

    code = 503
    reason = "Service Unavailable"


class RequestParser(HTTPRequestParser):  # type: ignore[misc]  # waitress has no types
    """A request being received."""

    path = ""
    """Waitress names it in its log, also when the request had none."""

    def received(self, data: bytes) -> int:
        """Take bytes of the request; return how many."""
        try:
            taken: int = super().received(data)
        except ValueError:  # a length of thousands of digits, an address that is none
            self.error = BadRequest("malformed")
            self.completed = self.headers_finished = True
            return len(data)
        return taken


class Channel(HTTPChannel):  # type: ignore[misc]  # waitress has no types
    """One connection. Read on the I/O thread, served on worker threads, written by them or by a detached writer."""

    error_task_class = JsonErrorTask
    parser_class = RequestParser
    request: HTTPRequestParser | None = None
    close_when_flushed: bool = False

    def __init__(self, *args: object, **kwargs: object) -> None:
        self._callbacks: list[Callable[[], None]] = []
        self._task: TwoStepTask | None = None
        self.began: float | None = None
        """When the request that is being received began, on the monotonic clock; None between requests."""
        self.used = False
        """Whether a request has been served on it."""
        self.discard_until: float | None = None
        """Until when what comes is thrown away, on the monotonic clock; None as long as it is read."""
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
        """Invite the body of a request, unless nothing more is wanted: it has none, or is refused."""
        if self.request is not None and self.request.completed:
            self.request.expect_continue = False
            return
        super().send_continue()

    def received(self, data: bytes) -> bool:
        """Take bytes from the client, and note when a request began."""
        taken: bool = super().received(data)
        if self.request is None:
            self.began = None
        elif self.began is None:
            self.began = time.monotonic()
        return taken

    def readable(self) -> bool:
        """Whether the client's bytes are wanted now."""
        return self.discard_until is not None or (not self._refused and bool(super().readable()))

    def handle_read(self) -> None:
        """Read from the client, or throw away what it still sends."""
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
        """Send what is to be sent; after a refusal stop sending, and read on for a moment."""
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
        """Answer a request that does not arrive completely with 408, and close."""
        self._give_up(RequestExpiredError(""))

    def turn_away(self) -> None:
        """Answer a request that is still arriving with 503, and close."""
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
        """Close without sending what is still unsent; callable from any thread."""
        self.will_close = True
        self.server.pull_trigger()

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        """Have a function called once when the client goes away; at once when it has gone already."""
        self._callbacks.append(callback)
        if not self.connected:
            self._tell()

    def handle_close(self) -> None:
        """Close the connection and tell whoever works for it."""
        super().handle_close()
        self._tell()

    def service(self) -> None:
        """Serve a request: run the application, then end the response at once or when its writer has finished."""
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

    def task_class(self, channel: "Channel", request: HTTPRequestParser) -> TwoStepTask:
        """Return the task that already ran; waitress asks for one to end the response with."""
        # Another thread may serve the connection's next request as soon as waitress has ended this one.
        task, self._task = self._task, None
        return task or TwoStepTask(channel, request)

    def _tell(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()
