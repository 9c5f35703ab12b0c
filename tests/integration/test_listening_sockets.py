"""The listening sockets of a server, on a system whose kernel has no IPv6."""

import errno
import socket
from typing import Any

import pytest

from mlxk.domain.errors import ValidationError
from mlxk.entrypoints.http.process.sockets import listen, port_of

IPV4 = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", 0))
IPV6 = (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("::1", 0, 0, 0))


@pytest.fixture
def without_ipv6(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Have no socket of IPv6 be made."""

    class Socket(socket.socket):
        def __init__(self, family: int = socket.AF_INET, *arguments: Any, **named: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *arguments, **named)

    monkeypatch.setattr(socket, "socket", Socket)
    return monkeypatch


def test_a_host_name_is_served_at_the_addresses_that_the_kernel_has(without_ipv6: pytest.MonkeyPatch) -> None:
    without_ipv6.setattr(socket, "getaddrinfo", lambda *_, **__: [IPV4, IPV6])
    sockets = listen("localhost", 0)
    try:
        assert [each.family for each in sockets] == [socket.AF_INET]
        assert port_of(sockets) > 0
    finally:
        for each in sockets:
            each.close()


def test_a_host_of_ipv6_only_is_refused(without_ipv6: pytest.MonkeyPatch) -> None:
    without_ipv6.setattr(socket, "getaddrinfo", lambda *_, **__: [IPV6])
    with pytest.raises(ValidationError, match="'::1' is not an address of this machine"):
        listen("::1", 0)
