"""A web of real sockets for the source of remote media: hosts at public addresses, all of them this machine."""

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpcore2

Say = Callable[[socket.socket, str], None]
"""Answers a request for a path."""

HOSTS = {
    "media.example": ("93.184.216.34",),
    "other.example": ("2606:2800:220:1::1",),
    "inside.example": ("10.0.0.5",),
    "both.example": ("93.184.216.34", "127.0.0.1"),
    "nowhere.example": (),
}
"""The addresses of names."""


def answer(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    """Return a response; underscores of headers are hyphens."""
    stated = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in stated.items() if value)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


class Web(httpcore2.NetworkBackend):
    """A server, and the network that leads every public address to it.

    Args:
        say: Answers by path; other paths are not found.
        tls: Certificates of the server; None speaks plain HTTP.
    """

    def __init__(self, say: Mapping[str, bytes | Say], tls: ssl.SSLContext | None = None) -> None:
        self._say = say
        self._tls = tls
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.connected: list[tuple[str, int]] = []
        """Addresses and ports that were connected to."""
        self.heads: list[str] = []
        """Requests, as they came."""
        self.hosts = dict(HOSTS)
        self.asked: list[str] = []
        """Names that were resolved."""
        self._open: list[socket.socket] = []

    def resolve(self, host: str, port: int) -> Iterable[str]:
        """Return the addresses of a host."""
        self.asked.append(host)
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            return self.hosts[host] if host in self.hosts else [each[4][0] for each in socket.getaddrinfo(host, port)]  # type: ignore[misc]

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connect to the server in place of a public address."""
        self.connected.append((host, port))
        return httpcore2.SyncBackend().connect_tcp("127.0.0.1", self.port, timeout)

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in (self._socket, *self._open):
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            self._open.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
            head = b""
            while b"\r\n\r\n" not in head and (part := client.recv(4096)):
                head += part
            self.heads.append(head.decode())
            path = head.split(b" ")[1].decode() if b" " in head else "/"
            said = self._say.get(path, answer(status="404 Not Found"))
            if isinstance(said, bytes):
                client.sendall(said)
            else:
                said(client, path)
            client.close()
        except OSError:  # the client has gone, as it may
            client.close()


def certificates(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return what a server of a name shows, and what a client needs to trust it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / f"{name}.pem", folder / f"{name}.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    private.write_bytes(key.private_bytes(*form))
    shown = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    shown.load_cert_chain(certificate, private)
    return shown, ssl.create_default_context(cafile=str(certificate))
