"""Media from public web addresses, fetched with limits on size and time.

Connections go to the checked IP address itself, so that a second name lookup cannot lead elsewhere. No proxy, cookie or
credential is used. Compressed responses are refused, so that a size is what came over the wire.
"""

import contextlib
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import httpcore2
import httpx2

from mlxk.application.ports.media import MediaSource
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.media import MIB, MediaKind

MAX_REDIRECTS = 4
"""Redirects that are followed, each checked like the first address."""

_QUIET_SECONDS = 10.0
"""Timeout of a connection attempt, and of the next bytes."""

_SHORTEST_SECONDS = 0.001
_WEB_PORTS = (80, 443)
_OPEN_PORTS = range(1024, 65536)
"""Lower ports belong to services other than web servers."""

_REDIRECTED = (301, 302, 303, 307, 308)
_OK = 200
_UNTYPED = ("application/octet-stream", "binary/octet-stream", "")
_HEADERS: Mapping[str | bytes, str | bytes] = {
    "User-Agent": "mlxk",
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
}

_SPECIAL = tuple(
    ipaddress.ip_network(each)
    for each in (
        *(
            "192.0.0.0/24",
            "192.88.99.0/24",
            "168.63.129.16/32",
        ),  # protocol assignments, 6to4 relays, a cloud's metadata service
        *(
            "2001::/23",
            "2001:db8::/32",
            "2002::/16",
            "3fff::/20",
        ),  # protocol assignments, documentation, 6to4, documentation
    )
)
"""Networks outside the public Internet, some of which Python counts as global."""

_GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")
_EMBEDS_IPV4 = re.compile(r"^(?:0000|0200)5efe")
"""Start of the interface identifier of an ISATAP address, which embeds an IPv4 address."""

Resolve = Callable[[str, int], Iterable[str]]
"""Returns the IP addresses of a host and port."""


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public Internet and embeds no other address."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if not ip.is_global or ip.is_multicast or any(ip in network for network in _SPECIAL):
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return True
    return ip in _GLOBAL_IPV6 and not _EMBEDS_IPV4.match(ip.packed[8:].hex())


def _resolve(host: str, port: int) -> Iterable[str]:
    return [str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class RemoteMediaSource(MediaSource):
    """Fetches media from public addresses.

    Args:
        resolve: Returns the IP addresses of a host.
        network: Opens connections.
        tls: Verifies servers; None for the context of this program's other requests.
    """

    def __init__(
        self,
        resolve: Resolve = _resolve,
        network: httpcore2.NetworkBackend | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._resolve = resolve
        self._network = network or httpcore2.SyncBackend()
        self._tls = tls or httpx2.create_ssl_context()

    def read(self, reference: str, kind: MediaKind, max_bytes: int, seconds: float) -> bytes:
        network = _PublicNetwork(self._resolve, self._network, time.monotonic() + seconds)
        url = _checked(reference, None)
        with _translate_errors(), httpcore2.ConnectionPool(self._tls, network_backend=network) as pool:
            for _ in range(MAX_REDIRECTS + 1):
                with pool.stream("GET", _target(url), headers={"Host": _host(url), **_HEADERS}) as response:
                    if response.status not in _REDIRECTED:
                        return _body(response, kind, max_bytes)
                    url = _checked(_header(response, b"location"), url)
        raise ValidationError(f"is redirected more than {MAX_REDIRECTS} times")


def _checked(reference: str, base: httpx2.URL | None) -> httpx2.URL:
    """Return a URL after the checks of scheme, port and credentials.

    Args:
        reference: The URL, or the ``Location`` of a redirect.
        base: URL of the response that redirects; None for the first request.

    Raises:
        ValidationError: It may not be fetched.
    """
    try:
        url = httpx2.URL(reference) if base is None else base.join(reference)
        port = 80 if url.port is None else url.port
        host = url.raw_host
    except (httpx2.InvalidURL, ValueError, TypeError) as error:
        raise ValidationError("is no valid address") from error
    if url.scheme not in ("http", "https") or not host or (base is not None and not reference):
        raise ValidationError("is no valid address" if base is None else "is redirected to something else than a page")
    if base is not None and (base.scheme, url.scheme) == ("https", "http"):
        raise ValidationError("is redirected from https to http")
    if url.userinfo:
        raise ValidationError("must not hold a name or a password")
    if port not in _WEB_PORTS and port not in _OPEN_PORTS:
        raise ValidationError(f"names the port {port}; it may be 80, 443, or one from {_OPEN_PORTS.start} on")
    return url


def _target(url: httpx2.URL) -> httpcore2.URL:
    return httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


def _host(url: httpx2.URL) -> str:
    return url.netloc.decode("ascii")


def _header(response: httpcore2.Response, name: bytes) -> str:
    header = next((value for key, value in response.headers if key.lower() == name), b"")
    return str(header.decode("latin-1").strip())


def _body(response: httpcore2.Response, kind: MediaKind, max_bytes: int) -> bytes:
    if response.status != _OK:
        raise ValidationError(f"its server answers with the status {response.status}")
    media_type = _header(response, b"content-type").partition(";")[0].strip().lower()
    if media_type not in _UNTYPED and not media_type.startswith(kind.types):
        raise ValidationError(f"its server says that it is no {kind.name}, but '{media_type[:60]}'")
    if _header(response, b"content-encoding").lower() not in ("", "identity"):
        raise ValidationError("its server compresses it, although it was asked not to")
    size, content = _header(response, b"content-length"), bytearray()
    if not size.isdecimal() or int(size) <= max_bytes:
        for part in response.iter_stream():
            content += part
            if len(content) > max_bytes:
                break
        else:
            return bytes(content)
    raise ValidationError(f"the {kind.name} has more than {max_bytes / MIB:.4g} MiB")


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except httpcore2.TimeoutException as error:
        raise ValidationError("its server takes too long") from error
    except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.UnsupportedProtocol) as error:
        causes = (error.__cause__, error.__context__)
        if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
            raise ValidationError("the certificate of its server cannot be verified") from error
        if isinstance(error, httpcore2.ProtocolError):
            raise ValidationError("its server does not answer as one of the web") from error
        raise ValidationError("its server cannot be reached, or breaks off") from error


class _PublicNetwork(httpcore2.NetworkBackend):
    """Connects to public addresses only, until a deadline.

    Args:
        resolve: Returns the IP addresses of a host.
        network: Opens connections.
        deadline: Of the monotonic clock, seconds.
    """

    def __init__(self, resolve: Resolve, network: httpcore2.NetworkBackend, deadline: float) -> None:
        self._resolve = resolve
        self._network = network
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connect to the first address of a host that accepts."""
        failure: Exception = httpcore2.ConnectError()
        for address in self._addresses(host, port):
            try:
                stream = self._network.connect_tcp(address, port, _timeout(self._deadline), local_address, ())
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
            else:
                return _TimedStream(stream, self._deadline)
        raise failure

    def _addresses(self, host: str, port: int) -> list[str]:
        """Return the distinct addresses of a host, all of which must be public."""
        addresses: list[str] = []

        def resolve() -> None:
            with contextlib.suppress(OSError, ValueError):  # the name is unknown, or invalid
                addresses.extend(self._resolve(host, port))

        # The system's resolver has no timeout to set.
        resolver = threading.Thread(target=resolve, daemon=True)
        resolver.start()
        resolver.join(_timeout(self._deadline))
        if resolver.is_alive():
            raise httpcore2.ConnectTimeout
        if not addresses or not all(map(is_public, addresses)):
            raise ValidationError("names no host with public addresses alone")
        return list(dict.fromkeys(addresses))


class _TimedStream(httpcore2.NetworkStream):
    """A connection whose reads and writes fail after a deadline, however slowly the bytes come."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what comes next."""
        return bytes(self._stream.read(max_bytes, _timeout(self._deadline)))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send bytes."""
        self._stream.write(buffer, _timeout(self._deadline))

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        """Return the connection with TLS."""
        stream = self._stream.start_tls(ssl_context, server_hostname, _timeout(self._deadline))
        return _TimedStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 - httpcore's signature
        """Return a detail of the connection."""
        return self._stream.get_extra_info(info)


def _timeout(deadline: float) -> float:
    """Return the timeout of the next operation; never 0, which would mean a non-blocking one."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore2.ReadTimeout
    return max(_SHORTEST_SECONDS, min(_QUIET_SECONDS, left))
