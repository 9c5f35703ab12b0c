"""Access control: checks host names, origins of web pages, and API keys."""

import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

import falcon

from mlxk.application.ports.other_processes import LOOPBACK_NAMES
from mlxk.domain.errors import ForbiddenOriginError, UnauthorizedError
from mlxk.entrypoints.api_keys import KeyRing, tenant_of
from mlxk.entrypoints.http.page import ChatPage
from mlxk.entrypoints.http.request_scope import Caller

CONTAINER_NAMES = frozenset(
    {
        "host.docker.internal",
        "gateway.docker.internal",
        "host.containers.internal",
        "host.lima.internal",
        "host.orb.internal",
    }
)
"""Names of this machine inside containers; nobody can register a domain below ``internal``."""

OPEN_PATHS = frozenset({"/health", "/livez", "/readyz"})
"""Probes of process managers, open without a key."""

PREFLIGHT_SECONDS = "600"

EXPOSED_HEADERS = "Request-ID, X-Request-ID, X-Mlxk-Adaptations, X-Mlxk-Ignored-Fields, Retry-After"

_HEADER_LIST = re.compile(r"[A-Za-z0-9_\-, ]{0,1024}")

_SHOWN_NAME = re.compile(r"[a-z0-9._-]{1,253}")
_SHOWN_ORIGIN = re.compile(r"null|[A-Za-z][A-Za-z0-9+.-]{0,40}://[A-Za-z0-9._\[\]:-]{1,253}")
"""Names and origins that a hint may repeat."""


def machine_names(host_name: str) -> frozenset[str]:
    """Return the names of this machine: its host name, with and without ``.local``, the domain of mDNS."""
    name = host_name.lower().rstrip(".")
    first = name.removesuffix(".local")
    return frozenset({name, first, f"{first}.local"}) if first else frozenset()


class HostGuard:
    """Refuses requests for foreign host names, as a protection against DNS rebinding.

    Args:
        bound_host: Address of the listening socket.
        allowed: Further names that the operator allows.
        machine: Host name of this machine; may be empty.
    """

    def __init__(self, bound_host: str, allowed: Sequence[str] = (), machine: str = "") -> None:
        configured = {name.lower().rstrip(".") for name in (bound_host, *allowed)}
        self._names = CONTAINER_NAMES.union(LOOPBACK_NAMES, machine_names(machine), configured)

    def process_request(self, request: falcon.Request, response: falcon.Response) -> None:
        """Check the ``Host`` header; HTTP/1.0 clients may leave it out.

        Raises:
            ForbiddenOriginError: The name is not allowed.
        """
        host = request.get_header("Host")
        if host is None and request.env.get("SERVER_PROTOCOL") == "HTTP/1.0":
            return
        name = _host_name(host or "")
        # DNS rebinding needs a name, so any IP address is safe.
        if name not in self._names and not _is_address(name):
            shown = name if _SHOWN_NAME.fullmatch(name) else "NAME"
            raise ForbiddenOriginError(
                "This server does not answer for that host name.", hint=f"Allow it with --allowed-host {shown}"
            )


class OriginGuard:
    """CORS: refuses web pages, except those of this machine and of origins that the operator allows.

    Args:
        allowed: Origins such as ``https://app.example``; ``null`` for pages opened from files; ``*`` for every page;
            ``scheme://*`` for every page of a scheme, and ``https://*.example`` for all subdomains.
    """

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._allowed = [re.compile(_origin_pattern(_normal(origin))) for origin in allowed]

    def process_request(self, request: falcon.Request, response: falcon.Response) -> None:
        """Check the ``Origin`` header, and respond to a preflight request.

        Raises:
            ForbiddenOriginError: The origin is not allowed.
        """
        origin = request.get_header("Origin")
        if origin is None:
            return
        if not self._allows(origin, request.get_header("Host") or ""):
            shown = origin if _SHOWN_ORIGIN.fullmatch(origin) else "ORIGIN"
            raise ForbiddenOriginError(
                "This server does not answer that web page.", hint=f"Allow it with --cors-origin {shown}"
            )
        if request.method == "OPTIONS" and request.get_header("Access-Control-Request-Method"):
            self._answer_preflight(request, response)

    def process_response(
        self, request: falcon.Request, response: falcon.Response, resource: object, succeeded: bool
    ) -> None:
        """Add the CORS headers."""
        response.append_header("Vary", "Origin")
        response.set_headers(self.headers(request))

    def headers(self, request: falcon.Request) -> dict[str, str]:
        """Return the headers that let the page that sent a request read the response; none if its origin is refused."""
        origin = request.get_header("Origin")
        if origin is None or not self._allows(origin, request.get_header("Host") or ""):
            return {}
        return {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": EXPOSED_HEADERS}

    def _allows(self, origin: str, host: str) -> bool:
        normal = _normal(origin)
        if any(pattern.fullmatch(normal) for pattern in self._allowed):
            return True
        try:
            parts = urlsplit(normal)
        except ValueError:
            return False
        if parts.scheme not in {"http", "https"} or not parts.netloc or parts.path:
            return False
        return parts.hostname in LOOPBACK_NAMES or parts.netloc == host.lower()

    def _answer_preflight(self, request: falcon.Request, response: falcon.Response) -> None:
        requested = request.get_header("Access-Control-Request-Headers") or ""
        response.status = falcon.HTTP_204
        response.set_header("Access-Control-Allow-Methods", "GET, POST, DELETE, HEAD, OPTIONS")
        response.set_header("Access-Control-Max-Age", PREFLIGHT_SECONDS)
        if _HEADER_LIST.fullmatch(requested) and requested:
            response.set_header("Access-Control-Allow-Headers", requested)
        if request.get_header("Access-Control-Request-Private-Network") == "true":
            response.set_header("Access-Control-Allow-Private-Network", "true")
        response.complete = True


TENANT_HEADERS = ("X-Cache-Tenant", "X-APC-Tenant")
"""Headers that separate the cached prompts of one key's users; the first one present counts."""


def _cache_tenant(request: falcon.Request) -> str | None:
    return next(filter(None, map(request.get_header, TENANT_HEADERS)), None)


class KeyGuard:
    """Requires an API key, if any are configured.

    Args:
        keys: The accepted keys.
        page: The chat page, whose files need no key.
    """

    def __init__(self, keys: KeyRing, page: ChatPage | None = None) -> None:
        self._keys = keys
        self._page = page

    def process_request(self, request: falcon.Request, response: falcon.Response) -> None:
        """Check the key in constant time, and store the ``Caller`` in the request's context.

        Raises:
            UnauthorizedError: The key is missing or wrong.
        """
        request.context.caller = Caller(tenant_of("", _cache_tenant(request)), is_operator=not self._keys)
        if not self._keys or request.path in OPEN_PATHS:
            return
        if self._page is not None and self._page.is_public(request):
            return
        key = next(filter(self._keys.opens, given_keys(request)), None)
        if key is None:
            raise UnauthorizedError("A valid API key is needed.", hint="Send the header Authorization: Bearer KEY.")
        request.context.caller = Caller(tenant_of(key, _cache_tenant(request)), self._keys.is_operators(key))


def given_keys(request: falcon.Request) -> tuple[str, ...]:
    """Return the keys of a request: of the headers ``Authorization`` and ``X-API-Key``, where they are present."""
    scheme, _, token = (request.get_header("Authorization") or "").partition(" ")
    keys = (token.strip(" \t") if scheme.lower() == "bearer" else None, request.get_header("X-API-Key"))
    # WSGI decodes headers as Latin-1.
    return tuple(key.encode("latin-1").decode("utf-8", "surrogateescape") for key in keys if key)


def _host_name(host: str) -> str:
    """Return the name in a ``Host`` header, without port and brackets; empty for a malformed header."""
    match = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::\d+)?|([^:,\[\]\s/@]+)(?::\d+)?", host)
    return (match[1] or match[2]).lower().rstrip(".") if match else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def _normal(origin: str) -> str:
    """Return an origin as browsers write it: in lower case, without default port and trailing slash."""
    text = origin.lower()
    if not text.endswith("://"):
        text = text.removesuffix("/")
    port = _DEFAULT_PORTS.get(text.partition("://")[0])
    return text.removesuffix(port) if port else text


def _origin_pattern(allowed: str) -> str:
    """Return a regular expression for an allowed origin; a wildcard matches subdomains, and no port."""
    if allowed == "*":
        return r".*"
    if allowed.endswith("://*"):
        return re.escape(allowed[:-1]) + r"[^/]*"
    return re.escape(allowed).replace(r"\*", r"[^/:@]+")
