"""The scope of a request: its id, its duration, and its line in the access log."""

import re
import uuid

import falcon

from mlxk.application.ports.clock import Clock
from mlxk.application.ports.event_log import EventLog
from mlxk.entrypoints.http.metrics import Metrics

REQUEST_ID = "X-Request-ID"

WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,128}")

QUIET_ROUTES = frozenset({"/health", "/livez", "/readyz", "/metrics"})
"""Probes, which come every few seconds; logged at level debug."""


class RequestScope:
    """Gives every request an id, from the client if it is well-formed, and logs the response.

    The log shows the route, never the path or the query, which may contain secrets.
    """

    def __init__(self, log: EventLog, clock: Clock, metrics: Metrics) -> None:
        self._log = log
        self._clock = clock
        self._metrics = metrics

    def process_request(self, request: falcon.Request, response: falcon.Response) -> None:
        """Set the request's id and start time."""
        request.context.request_id = request_id_from(request.get_header(REQUEST_ID))
        request.context.began = self._clock.monotonic()

    def process_response(
        self, request: falcon.Request, response: falcon.Response, resource: object, succeeded: bool
    ) -> None:
        """Set the common headers, and log the request; a stream may still be running."""
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


def request_id_from(given: str | None) -> str:
    """Return the id that a client sent if it is well-formed, otherwise a new one."""
    return given if given is not None and WELL_FORMED.fullmatch(given) else uuid.uuid4().hex


def request_id(request: falcon.Request) -> str:
    """Return the id of a request."""
    # Falcon refuses some requests before any middleware runs.
    known: str | None = getattr(request.context, "request_id", None)
    if known is None:
        known = request.context.request_id = request_id_from(request.get_header(REQUEST_ID))
    return known
