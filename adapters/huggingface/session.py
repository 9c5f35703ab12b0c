"""The HTTP session of the hub: timeouts, bounded answers, and a token that goes to the endpoint only.

The hub client uses it as well, so that what it asks for is limited in the same way.
"""

import urllib.request
from collections.abc import Callable, Iterator

import httpx2

from mlxk.domain.errors import DownloadFailedError, ValidationError

COMMIT_TIMEOUT_SECONDS = 120.0
"""Read timeout of requests that write."""

MAX_ANSWER_BYTES = 32 * 1024 * 1024
"""An answer of the API; a page of 1,000 files takes a few hundred kilobytes, a large index some megabytes."""

IS_FILE = "mlxk-file"
"""Extension of the requests whose answers are files, which are bounded by their listed size."""

PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


def origin_of(url: httpx2.URL) -> tuple[str, str, int | None]:
    """Return scheme, host and port of an address."""
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _may_have_token(endpoint: httpx2.URL, url: httpx2.URL) -> bool:
    """Whether an address is the endpoint's origin, or the same host over TLS."""
    upgraded = (origin_of(endpoint)[0], endpoint.host, origin_of(url)[0]) == ("http", url.host, "https")
    return origin_of(endpoint) == origin_of(url) or (upgraded and origin_of(url)[2] == 443)


def unusable_proxy() -> ValidationError:
    """Return the error that names the variable of a proxy; its value may hold a password."""
    for kind, address in urllib.request.getproxies().items():
        scheme = address.partition("://")[0] if "://" in address else "http"
        if kind in {"http", "https", "all"} and scheme not in PROXY_SCHEMES:
            return ValidationError(
                f"{kind.upper()}_PROXY names a proxy of the kind '{scheme}', which cannot be used",
                hint=f"Use one of {', '.join(PROXY_SCHEMES)}, or unset the variable.",
            )
    return ValidationError(
        "a proxy of the environment cannot be used", hint="Correct or unset HTTP_PROXY, HTTPS_PROXY and ALL_PROXY."
    )


class _BoundedStream(httpx2.SyncByteStream):
    """The body of an answer that is no file."""

    def __init__(self, stream: httpx2.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        received = 0
        for chunk in self._stream:
            received += len(chunk)
            if received > MAX_ANSWER_BYTES:
                raise DownloadFailedError("the hub's answer does not end", hint="See whether HF_ENDPOINT is a hub.")
            yield chunk

    def close(self) -> None:
        self._stream.close()


def open_session(address: str, timeout: float) -> httpx2.Client:
    """Return a session for requests to a hub.

    Args:
        address: The endpoint, which alone receives the token.
        timeout: Seconds without a byte after which a request that reads fails.

    Raises:
        ValueError, ImportError: A proxy of the environment cannot be used; see ``unusable_proxy``.
    """
    endpoint = httpx2.URL(address)
    reading = httpx2.Timeout(timeout, pool=None)
    writing = httpx2.Timeout(timeout, read=max(timeout, COMMIT_TIMEOUT_SECONDS), pool=None)

    def limit(request: httpx2.Request) -> None:
        """Set the timeouts on requests of the hub client, which have none; take the token from all others' requests."""
        if not _may_have_token(endpoint, request.url):
            request.headers.pop("Authorization", None)
        if not any((request.extensions.get("timeout") or {}).values()):
            limits = reading if request.method in {"GET", "HEAD"} else writing
            request.extensions["timeout"] = limits.as_dict()

    def bound(response: httpx2.Response) -> None:
        """Bound what is read of an answer."""
        if IS_FILE not in response.request.extensions and isinstance(response.stream, httpx2.SyncByteStream):
            response.stream = _BoundedStream(response.stream)

    hooks: dict[str, list[Callable[..., object]]] = {"request": [limit], "response": [bound]}
    return httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=reading)
