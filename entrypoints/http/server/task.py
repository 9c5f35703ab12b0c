"""Tasks: what waitress does with one request, in two steps so that a response can outlive the first."""

import json
from collections.abc import Callable
from typing import Any

from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.task import ErrorTask, WSGITask
from waitress.utilities import Error

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
