"""What holds for every request: its id, its duration, its line in the access log."""

import re
import uuid

import falcon

from mlxk.application.ports.clock import Clock
from mlxk.application.ports.event_log import EventLog
from mlxk.entrypoints.http.metrics import Metrics

REQUEST_ID = "X-Request-ID"

WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,128}")

QUIET_ROUTES = frozenset({"/health", "/livez", "/readyz", "/metrics"})
"""Asked every few seconds by machines; logged as details."""


class RequestScope:
    """Gives every request an id, taken from the client when it is well-formed, and logs it when it was answered.

    The log shows the route, never the path or the query, which may hold anything.
    """

    def __init__(self, log: EventLog, clock: Clock, metrics: Metrics) -> None:
        self._log = log
        self._clock = clock
        self._metrics = metrics

    def process_request(self, request: falcon.Request, response: falcon.Response) -> None:
        """Begin."""
        request.context.request_id = wished_id(request.get_header(REQUEST_ID))
        request.context.began = self._clock.monotonic()

    def process_response(
        self, request: falcon.Request, response: falcon.Response, resource: object, succeeded: bool
    ) -> None:
        """End, as far as a response that goes on as a stream can be called ended."""
        response.set_header(REQUEST_ID, request_id(request))
        response.set_header("X-Content-Type-Options", "nosniff")
        route = request.uri_template or "unknown"
        status = response.status_code
        method = request.method if request.method in falcon.HTTP_METHODS else "unknown"
        self._metrics.request(route, method, status)
        seconds = self._clock.monotonic() - getattr(request.context, "began", self._clock.monotonic())
        write = self._log.debug if route in QUIET_ROUTES else self._log.info
        write(
            "request",
            logger="access",
            request_id=request_id(request),
            method=method,
            route=route,
            status=status,
            duration_ms=round(seconds * 1000, 1),
        )


def wished_id(given: str | None) -> str:
    """Return the id a client gave its request when it is well-formed, and a new one otherwise."""
    return given if given is not None and WELL_FORMED.fullmatch(given) else uuid.uuid4().hex


def request_id(request: falcon.Request) -> str:
    """Return the id of a request."""
    # Falcon refuses some requests before it asks anybody.
    known: str | None = getattr(request.context, "request_id", None)
    if known is None:
        known = request.context.request_id = wished_id(request.get_header(REQUEST_ID))
    return known
