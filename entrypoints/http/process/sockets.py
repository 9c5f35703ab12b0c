"""Listening sockets, bound before anything is loaded, so that a port in use is reported at once."""

import errno
import ipaddress
import socket
from collections.abc import Sequence

from mlxk.domain.errors import PortInUseError, StorageError, ValidationError

BACKLOG = 1024
"""Connections that may wait to be accepted, also while a worker is restarted."""


def listen(host: str, port: int) -> list[socket.socket]:
    """Return listening sockets for every address a host name has; ``localhost`` usually has two.

    Raises:
        PortInUseError: The port is in use by another process.
        ValidationError: The host is not an address of this machine.
        StorageError: This user may not bind the port.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ValidationError(f"--host: '{host}' is not the name of an address") from error
    sockets: list[socket.socket] = []
    try:
        for family, address in {(each[0], each[4]): None for each in found}:
            place = (address[0], sockets[0].getsockname()[1] if sockets and not port else port, *address[2:])
            bound = _bind(family, place, required=not sockets)
            if bound is not None:
                sockets.append(bound)
    except BaseException:
        for each in sockets:
            each.close()
        raise
    return sockets


def is_loopback(host: str) -> bool:
    """Whether a host is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def port_of(sockets: Sequence[socket.socket]) -> int:
    """Return the port that the sockets share."""
    port: int = sockets[0].getsockname()[1]
    return port


def _bind(family: int, place: tuple[object, ...], *, required: bool) -> socket.socket | None:
    """Bind one address; returns None for an address that the machine lacks, unless it is required."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(place)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"port {place[1]} is already in use", hint="Choose another one with --port."
            ) from error
        if error.errno in {errno.EACCES, errno.EPERM}:
            raise StorageError(
                f"port {place[1]}: this user may not listen there", hint="Ports from 1024 are free to use."
            ) from error
        if required:
            raise ValidationError(f"--host: '{place[0]}' is not an address of this machine") from error
        return None
    return sock
