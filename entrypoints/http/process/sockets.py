"""Listening sockets, bound before anything is loaded, so that a port in use is reported at once."""

import contextlib
import errno
import fcntl
import ipaddress
import socket
import struct
import sys
from collections.abc import Sequence

from mlxk.domain.errors import PortInUseError, StorageError, ValidationError
from mlxk.entrypoints.server_address import LOOPBACK

BACKLOG = 1024
"""Connections that may wait to be accepted, for example while a worker restarts."""


def listen(host: str, port: int) -> list[socket.socket]:
    """Return a listening socket for each address of a host name; ``localhost`` usually has two.

    Raises:
        PortInUseError: The port is in use by another process.
        ValidationError: The host is not an address of this machine.
        StorageError: This user may not bind the port.
    """
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ValidationError(f"--host: '{host}' is not the name of an address") from error
    sockets: list[socket.socket] = []
    try:
        for family, place in dict.fromkeys((each[0], each[4]) for each in infos):
            address = (place[0], sockets[0].getsockname()[1] if sockets and not port else port, *place[2:])
            bound = _bind(family, address, required=not sockets)
            if bound is not None:
                sockets.append(bound)
    except BaseException:
        for each in sockets:
            each.close()
        raise
    return sockets


def port_of(sockets: Sequence[socket.socket]) -> int:
    """Return the port that the sockets share."""
    port: int = sockets[0].getsockname()[1]
    return port


def others_reach(host: str) -> tuple[str, ...]:
    """Return the addresses at which other machines reach a server bound to all interfaces; empty for another host.

    Connecting a datagram socket sends nothing; it selects the source address.
    """
    families = {"0.0.0.0": socket.AF_INET, "::": socket.AF_INET6}
    addresses = [_interface_address(name) for _, name in socket.if_nameindex()] if host == "0.0.0.0" else []
    if (family := families.get(host)) is not None:
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((_ELSEWHERE[family], 9))
            addresses.append(str(probe.getsockname()[0]))
    usable = [each for each in addresses if each and not ipaddress.ip_address(each.partition("%")[0]).is_loopback]
    return tuple(dict.fromkeys(usable))


_ELSEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses reserved for documentation, which are routed like any public address."""

_GET_ADDRESS = 0xC0206921 if sys.platform == "darwin" else 0x8915
"""The ioctl request SIOCGIFADDR: the IPv4 address of an interface."""


def _interface_address(interface: str) -> str | None:
    request = struct.pack("256s", interface.encode()[:15])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            return socket.inet_ntoa(fcntl.ioctl(probe, _GET_ADDRESS, request)[20:24])
    except OSError:  # the interface has no IPv4 address
        return None


def _bind(family: int, address: tuple[object, ...], *, required: bool) -> socket.socket | None:
    """Bind one address; return None when the machine lacks it, unless it is required."""
    if sys.platform == "darwin" and address[1] and _answers(family, address):
        raise _in_use(address)
    try:
        return _listening_socket(family, address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _in_use(address) from error
        if error.errno in {errno.EACCES, errno.EPERM}:
            raise StorageError(
                f"port {address[1]}: this user may not listen there", hint="Ports from 1024 are free to use."
            ) from error
        if required:
            raise ValidationError(f"--host: '{address[0]}' is not an address of this machine") from error
        return None


def _listening_socket(family: int, address: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)  # fails for IPv6 where the kernel has none
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


_CONNECT_SECONDS = 1.0


def _answers(family: int, address: tuple[object, ...]) -> bool:
    """Whether a server accepts connections there; macOS lets two share a port when one is bound to all interfaces."""
    host = str(address[0])
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_SECONDS)
        try:
            return probe.connect_ex((LOOPBACK.get(host, host), *address[1:])) == 0
        except OSError:  # no such address, which ``bind`` reports
            return False


def _in_use(address: tuple[object, ...]) -> PortInUseError:
    return PortInUseError(f"port {address[1]} is already in use", hint="Choose another one with --port.")
