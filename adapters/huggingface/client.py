"""HTTP access to the hub: a session with bounded answers and a token for the endpoint only, retries, translated errors.

Requests go through the HTTP library of the hub client, so that proxies and certificates work as they do there. The hub
client sets no timeout on most of its requests; it uses this session as well, which sets one on each.
"""

import email.utils
import math
import random
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import quote

import attrs
import httpx2
from huggingface_hub import HfApi, constants, errors, get_session, set_client_factory
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, though not marked so

from mlxk.domain.errors import (
    AccessDeniedError,
    DownloadFailedError,
    MlxkError,
    ModelNotFoundError,
    NetworkError,
    RevisionNotFoundError,
    ValidationError,
)

COMMIT_TIMEOUT_SECONDS = 120.0
"""Read timeout of requests that write."""

MAX_ANSWER_BYTES = 32 * 1024 * 1024
"""Limit of an API answer; a page of 1,000 files has a few hundred kilobytes, a large index some megabytes."""

IS_FILE = "mlxk-file"
"""Request extension that marks downloads of files, which are limited by their listed size instead."""

PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


def origin_of(url: httpx2.URL) -> tuple[str, str, int | None]:
    """Return scheme, host and port of a URL."""
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _may_have_token(endpoint: httpx2.URL, url: httpx2.URL) -> bool:
    """Whether a URL has the endpoint's origin, or is the same host over TLS."""
    upgraded = (origin_of(endpoint)[0], endpoint.host, origin_of(url)[0]) == ("http", url.host, "https")
    return origin_of(endpoint) == origin_of(url) or (upgraded and origin_of(url)[2] == 443)


def unusable_proxy() -> ValidationError:
    """Return the error that names the variable of the proxy, without its value, which may have a password."""
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
    """The body of an API answer, limited to ``MAX_ANSWER_BYTES``."""

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
        timeout: Seconds without a byte after which a reading request fails.

    Raises:
        ValueError, ImportError: A proxy of the environment cannot be used; see ``unusable_proxy``.
    """
    endpoint = httpx2.URL(address)
    reading = httpx2.Timeout(timeout, pool=None)
    writing = httpx2.Timeout(timeout, read=max(timeout, COMMIT_TIMEOUT_SECONDS), pool=None)

    def limit(request: httpx2.Request) -> None:
        """Set timeouts on requests without any, and remove the token from requests to other hosts."""
        if not _may_have_token(endpoint, request.url):
            request.headers.pop("Authorization", None)
        if not any((request.extensions.get("timeout") or {}).values()):
            limits = reading if request.method in {"GET", "HEAD"} else writing
            request.extensions["timeout"] = limits.as_dict()

    def bound(response: httpx2.Response) -> None:
        """Limit the body of an API answer."""
        if IS_FILE not in response.request.extensions and isinstance(response.stream, httpx2.SyncByteStream):
            response.stream = _BoundedStream(response.stream)

    hooks: dict[str, list[Callable[..., object]]] = {"request": [limit], "response": [bound]}
    return httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=reading)


PUBLIC_ENDPOINT = "https://huggingface.co"

TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Status codes after which the same request may succeed."""

TOO_MANY_REQUESTS = 429

API_RETRIES = 3
"""Retries of an API call, for which a user waits; downloads have more."""

LONGEST_API_WAIT = 60.0
"""Seconds of a ``Retry-After`` after which an API call fails at once."""

_MAX_TOKEN_CHARACTERS = 10_000
_RESULT = TypeVar("_RESULT")


@attrs.frozen
class RetryPolicy:
    """Limits of retries and waits."""

    retries: int = 6
    """Consecutive failures without progress after which an operation fails."""
    first_wait: float = 0.5
    """Seconds before the first retry; every further wait is twice as long."""
    longest_wait: float = 30.0
    """Seconds."""
    longest_retry_after: float = 300.0
    """Upper limit of a ``Retry-After``, seconds."""

    def wait(self, failures: int, retry_after: float | None = None) -> float:
        """Return the seconds to wait after a number of consecutive failures; ``Retry-After`` takes precedence."""
        if retry_after is not None:
            return min(max(retry_after, 0.0), self.longest_retry_after)
        longest: float = min(self.first_wait * 2.0 ** max(failures - 1, 0), self.longest_wait)
        return longest * random.uniform(0.75, 1.0)


@attrs.frozen
class HubAccess:
    """Address, credentials and limits of a hub."""

    endpoint: str = PUBLIC_ENDPOINT
    token: str | None = attrs.field(default=None, repr=False)
    offline: bool = False
    """Whether requests are forbidden."""
    timeout: float = 10.0
    """Seconds without a byte after which a request fails and is retried."""
    metadata_timeout: float = 10.0
    """Seconds that a request for a file's metadata may take."""
    token_for_writing_only: bool = False
    """Whether reading requests carry no token."""
    retry_policy: RetryPolicy = attrs.field(factory=RetryPolicy)

    @property
    def address(self) -> str:
        """The endpoint without user name and password, for messages."""
        scheme, _, remainder = self.endpoint.partition("://")
        host, slash, path = remainder.partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def stored_token(path: str) -> str | None:
    """Return the token that ``hf auth login`` left in a file, if any."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read(_MAX_TOKEN_CHARACTERS).strip() or None
    except (OSError, ValueError):
        return None


class HubClient:
    """A connection pool to the hub, opened at the first request. Thread-safe.

    Args:
        access: Address, credentials and limits.
    """

    def __init__(self, access: HubAccess) -> None:
        self.access = access
        self._session: httpx2.Client | None = None
        self._lock = threading.Lock()
        # Otherwise the hub client requests a list of agents from the hub, to name them in its headers.
        constants.HF_HUB_DISABLE_TELEMETRY = True

    def open(self) -> httpx2.Client:
        """Return the session, which the hub client uses as well.

        Raises:
            NetworkError: The client is offline.
            ValidationError: A proxy of the environment cannot be used.
            AccessDeniedError: The token has invalid characters.
        """
        if self.access.offline:
            raise NetworkError("the hub is not asked: HF_HUB_OFFLINE is set", hint="Unset HF_HUB_OFFLINE.")
        _require_sendable(self.access.token)
        with self._lock:
            if self._session is None:
                set_client_factory(lambda: open_session(self.access.endpoint, self.access.timeout))
                try:
                    self._session = get_session()
                except (ValueError, ImportError) as error:
                    raise unusable_proxy() from error
            return self._session

    def api(self) -> HfApi:
        """Return the hub client.

        Raises:
            NetworkError, AccessDeniedError: See ``open``.
        """
        self.open()
        return HfApi(endpoint=self.access.endpoint, token=self.access.token or False, library_name="mlxk")

    def file_url(self, name: str, commit: str, path: str) -> str:
        """Return the URL of a file of a revision."""
        return f"{self.access.endpoint}/{name}/resolve/{commit}/{quote(path)}"

    def headers(self) -> dict[str, str]:
        """Return the headers of a reading request; the session removes the token on a redirect to another host."""
        token = None if self.access.token_for_writing_only else self.access.token
        headers = build_hf_headers(token=token or False, library_name="mlxk")
        return {**headers, "Accept-Encoding": "identity"}

    def with_retries(self, call: Callable[[], _RESULT]) -> _RESULT:
        """Return the result of an idempotent call, repeated after transient errors."""
        failures, most = 0, min(self.access.retry_policy.retries, API_RETRIES)
        while True:
            try:
                return call()
            except httpx2.HTTPError as error:
                failures += 1
                if not is_transient(error) or failures > most or (retry_after(error) or 0) > LONGEST_API_WAIT:
                    raise
                self.pause(failures, error)

    def pause(self, failures: int, error: httpx2.HTTPError) -> None:
        """Wait before the next retry, for the time of ``Retry-After`` if the hub sends it."""
        time.sleep(self.access.retry_policy.wait(failures, retry_after(error)))


def _require_sendable(token: str | None) -> None:
    """Refuse a token with invalid characters; the HTTP library would quote it in an error."""
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise AccessDeniedError(
            "the token has characters that no token has, such as a space or a line break",
            hint="Set HF_TOKEN anew, or run: hf auth login",
        )


def is_transient(error: httpx2.HTTPError) -> bool:
    """Whether the same request may succeed later."""
    status = status_of(error)
    return status in TRANSIENT_STATUSES if status else isinstance(error, httpx2.TransportError)


def retry_after(error: httpx2.HTTPError) -> float | None:
    """Return the ``Retry-After`` of an error's response in seconds, if any."""
    response = getattr(error, "response", None)
    return None if response is None else parse_retry_after(response.headers.get("Retry-After"))


def parse_retry_after(value: str | None) -> float | None:
    """Return the seconds of a ``Retry-After`` header, which is a number or a date."""
    if not value:
        return None
    if value.strip().isdecimal():
        seconds = float(value)
        return seconds if math.isfinite(seconds) else None
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


@contextmanager
def translate_errors(name: str, revision: str | None, access: HubAccess) -> Iterator[None]:
    """Translate the exceptions of the hub client.

    Raises:
        MlxkError: As listed in ``ModelHub``.
    """
    try:
        yield
    except (httpx2.HTTPError, ConnectionError) as error:
        raise _translated(error, name, revision, access) from error


def _translated(error: Exception, name: str, revision: str | None, access: HubAccess) -> MlxkError:
    token_hint = (
        "Set HF_TOKEN to a token that may." if not access.token else "Check what the token in HF_TOKEN may see."
    )
    if isinstance(error, errors.GatedRepoError):
        terms = f"Accept the terms at {access.address}/{name}"
        hint = f"{terms} and set HF_TOKEN." if not access.token else f"{terms} with the account of HF_TOKEN."
        return AccessDeniedError(f"'{name}' is gated: its author decides who may have it", hint=hint)
    if isinstance(error, errors.RepositoryNotFoundError):
        hint = f"Check the spelling. If it is private: {token_hint[0].lower()}{token_hint[1:]}"
        return ModelNotFoundError(f"'{name}' is not on the hub, or is private and not shown to you", hint=hint)
    if isinstance(error, errors.RevisionNotFoundError):
        return RevisionNotFoundError(
            f"'{name}' has no revision '{revision}' on the hub",
            hint="The hub knows branches, tags and whole commits of 40 digits.",
        )
    if isinstance(error, errors.DisabledRepoError):
        return AccessDeniedError(f"'{name}' has been disabled on the hub")
    status = status_of(error)
    if status in {401, 403}:
        return AccessDeniedError(f"the hub denies access to '{name}' (HTTP {status})", hint=token_hint)
    if status == TOO_MANY_REQUESTS and isinstance(error, httpx2.HTTPError):
        seconds = retry_after(error)
        wait = f"in {math.ceil(seconds)} seconds" if seconds else "in some minutes"
        more = "" if access.token else "; with a token in HF_TOKEN the hub lets more through"
        hint = f"Try again {wait}{more}."
        return NetworkError(f"the hub limits requests (HTTP {status})", hint=hint)
    if status in TRANSIENT_STATUSES:
        return NetworkError(f"the hub is not well (HTTP {status})", hint="Try again later; what arrived is kept.")
    if status:
        return DownloadFailedError(f"the hub refuses the request for '{name}' (HTTP {status})")
    return NetworkError(
        f"the hub at {access.address} cannot be reached: {reason_of(error)}",
        hint="See whether this machine is online and, where HF_ENDPOINT is set, whether that is the hub's address.",
    )


def reason_of(error: BaseException) -> str:
    """Return the reason of a network error, at least its class name."""
    if isinstance(error, httpx2.TimeoutException):
        return "no answer in time"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return "its name is not known"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror[:1].lower() + cause.strerror[1:]
        cause = cause.__cause__ or cause.__context__
    return str(error).strip() or type(error).__name__


def status_of(error: Exception) -> int | None:
    """Return the HTTP status of an error's response, if it has one."""
    response = getattr(error, "response", None)
    return response.status_code if response is not None else None
