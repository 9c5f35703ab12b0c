"""Falcon middleware: the id and log line of every request, and the checks before its resource runs."""

import hashlib
import hmac
import ipaddress
import re
import uuid
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import falcon

from mlxk.application.ports.clock import Clock
from mlxk.application.ports.event_log import EventLog
from mlxk.domain.errors import ForbiddenOriginError, PayloadTooLargeError, UnauthorizedError
from mlxk.entrypoints.http.lifecycle import Metrics

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


LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

OPEN_PATHS = frozenset({"/health", "/livez", "/readyz"})
"""Probes of process managers, which need no key."""

PREFLIGHT_SECONDS = "600"

EXPOSED_HEADERS = "X-Request-ID, X-Mlxk-Ignored-Fields, Retry-After"

_HEADER_LIST = re.compile(r"[A-Za-z0-9_\-, ]{0,1024}")


class BodyGuard:
    """Refuses request bodies that are too large for their path.

    Args:
        limit_bytes: The operator's limit.
        larger: Limits of paths that take more.
    """

    def __init__(self, limit_bytes: int, larger: Mapping[str, int]) -> None:
        self._limit = limit_bytes
        self._larger = larger

    def process_request(self, request: falcon.Request, response: falcon.Response) -> None:
        """Check the length of the body, which the server has counted.

        Raises:
            PayloadTooLargeError: The body is larger than allowed.
        """
        if (request.content_length or 0) > self._larger.get(request.path.rstrip("/"), self._limit):
            raise PayloadTooLargeError("The request body is larger than the server takes.")


class HostGuard:
    """Refuses requests for host names that are not this server's, against DNS rebinding.

    Args:
        bound_host: Address of the listening socket.
        allowed: Further names, as the operator gave them.
    """

    def __init__(self, bound_host: str, allowed: Sequence[str] = ()) -> None:
        self._names = LOOPBACK_NAMES | {bound_host.lower()} | {name.lower() for name in allowed}

    def process_request(self, request: falcon.Request, response: falcon.Response) -> None:
        """Check the ``Host`` header; HTTP/1.0 clients may leave it out.

        Raises:
            ForbiddenOriginError: The name is not allowed.
        """
        host = request.get_header("Host")
        if host is None and request.env.get("SERVER_PROTOCOL") == "HTTP/1.0":
            return
        name = _host_name(host or "")
        # DNS rebinding needs a name, so any address is safe.
        if name not in self._names and not _is_address(name):
            raise ForbiddenOriginError(
                "This server does not answer for that host name.", hint="Allow it with --allowed-host NAME."
            )


class OriginGuard:
    """CORS: refuses web pages, except those of this machine and those the operator allowed.

    Args:
        allowed: Origins such as ``https://app.example``; ``null`` for pages opened from files.
    """

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._allowed = frozenset(origin.rstrip("/").lower() for origin in allowed)

    def process_request(self, request: falcon.Request, response: falcon.Response) -> None:
        """Check the ``Origin`` header, and respond to a preflight.

        Raises:
            ForbiddenOriginError: The page is not allowed.
        """
        origin = request.get_header("Origin")
        if origin is None:
            return
        if not self._allows(origin, request.get_header("Host") or ""):
            raise ForbiddenOriginError(
                "This server does not answer that web page.", hint="Allow it with --cors-origin ORIGIN."
            )
        if request.method == "OPTIONS" and request.get_header("Access-Control-Request-Method"):
            self._answer_preflight(request, response)

    def process_response(
        self, request: falcon.Request, response: falcon.Response, resource: object, succeeded: bool
    ) -> None:
        """Add the CORS headers."""
        origin = request.get_header("Origin")
        response.append_header("Vary", "Origin")
        if origin is not None and self._allows(origin, request.get_header("Host") or ""):
            response.set_header("Access-Control-Allow-Origin", origin)
            response.set_header("Access-Control-Expose-Headers", EXPOSED_HEADERS)

    def _allows(self, origin: str, host: str) -> bool:
        wanted = origin.lower()
        if wanted in self._allowed:
            return True
        try:
            parts = urlsplit(wanted)
        except ValueError:
            return False
        if parts.scheme not in {"http", "https"} or not parts.netloc or parts.path:
            return False
        return parts.hostname in LOOPBACK_NAMES or parts.netloc == host.lower()

    def _answer_preflight(self, request: falcon.Request, response: falcon.Response) -> None:
        asked = request.get_header("Access-Control-Request-Headers") or ""
        response.status = falcon.HTTP_204
        response.set_header("Access-Control-Allow-Methods", "GET, POST, HEAD, OPTIONS")
        response.set_header("Access-Control-Max-Age", PREFLIGHT_SECONDS)
        if _HEADER_LIST.fullmatch(asked) and asked:
            response.set_header("Access-Control-Allow-Headers", asked)
        if request.get_header("Access-Control-Request-Private-Network") == "true":
            response.set_header("Access-Control-Allow-Private-Network", "true")
        response.complete = True


class KeyGuard:
    """Requires an API key, if there are any.

    Args:
        keys: The accepted keys.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    def process_request(self, request: falcon.Request, response: falcon.Response) -> None:
        """Check the key in constant time.

        Raises:
            UnauthorizedError: The key is missing or wrong.
        """
        if not self._digests or request.path in OPEN_PATHS:
            return
        scheme, _, token = (request.get_header("Authorization") or "").partition(" ")
        given = token.strip(" \t") if scheme.lower() == "bearer" else request.get_header("X-API-Key") or ""
        # WSGI decodes headers as Latin-1.
        digest = hashlib.sha256(given.encode("latin-1")).digest()
        if not sum(hmac.compare_digest(digest, known) for known in self._digests):
            raise UnauthorizedError("A valid API key is needed.", hint="Send the header Authorization: Bearer KEY.")


def _host_name(host: str) -> str:
    """Return the name in a ``Host`` header, without port and brackets; empty when it is malformed."""
    match = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::\d+)?|([^:,\[\]\s/@]+)(?::\d+)?", host)
    return (match[1] or match[2]).lower().rstrip(".") if match else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
