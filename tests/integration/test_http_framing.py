"""Where requests begin and end, by RFC 9112, on a real socket."""

import json
from collections.abc import Iterator

import pytest
from serving.parts import CHAT_MODEL, Parts
from serving.running import RunningServer, read_all

from mlxk.entrypoints.http.server.channel import LINGER_BYTES

PATH = "/v1/chat/completions"
CHAT = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": "one two three"}]}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Run a server."""
    with RunningServer(Parts()) as running:
        yield running


POST = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
JSON = json.dumps(CHAT).encode()
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(JSON), JSON)
NEXT = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("length", [0, 4, len(JSON), len(CHUNKED), 9999])
@pytest.mark.parametrize("order", [1, -1])
def test_a_request_framed_in_two_ways_is_the_last_of_its_connection(
    length: int, order: int, server: RunningServer
) -> None:
    framing = "".join([f"Content-Length: {length}\r\n", "Transfer-Encoding: chunked\r\n"][::order])
    connection = server.connect(10)
    connection.sendall(f"{POST}{framing}\r\n".encode() + CHUNKED + NEXT)
    answers = read_all(connection)
    assert answers.startswith(b"HTTP/1.1 200 ")
    assert answers.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answers.lower()


@pytest.mark.parametrize(
    ("framing", "status"),
    [
        ("Transfer-Encoding: chunked, chunked", 400),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 400),
        ("Transfer-Encoding: chunked,\r\n chunked", 400),
        ("transfer-encoding:CHUNKED , chunked", 400),
        ("Transfer-Encoding: chunked, identity", 400),
        ("Transfer-Encoding: chunked, gzip", 400),
        ("Transfer-Encoding: ", 400),
        ("Transfer-Encoding: , chunked", 400),
        ("Transfer-Encoding: gzip, chunked", 501),
        ("Transfer-Encoding: identity", 501),
        ("Transfer-Encoding: chunked;q=1", 501),
        ("Content-Length: 1, 1", 400),
        ("Content-Length: 1\r\nContent-Length: 2", 400),
        ("Content-Length: +5", 400),
        ("Content-Length: 0x5", 400),
        ("Content-Length : 5", 400),
    ],
)
def test_a_framing_that_others_could_read_differently_is_refused(
    framing: str, status: int, server: RunningServer
) -> None:
    connection = server.connect(10)
    connection.sendall(f"{POST}{framing}\r\n\r\n".encode() + CHUNKED + NEXT)
    answers = read_all(connection)
    assert answers.startswith(f"HTTP/1.1 {status} ".encode()) or answers.startswith(f"HTTP/1.0 {status} ".encode())
    assert answers.count(b"HTTP/1.") == 1
    assert json.loads(answers.partition(b"\r\n\r\n")[2])["error"]["type"] == "validation_error"


@pytest.mark.parametrize("coding", ["chunked", "CHUNKED", " chunked ", "chunked\t"])
def test_one_chunked_coding_is_read_in_any_spelling(coding: str, server: RunningServer) -> None:
    connection = server.connect(10)
    connection.sendall(f"{POST}Connection: close\r\nTransfer-Encoding:{coding}\r\n\r\n".encode() + CHUNKED)
    assert read_all(connection).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("version", "status"),
    [(" HTTP/1.0", 200), (" HTTP/1.1", 200), (" HTTP/1.2", 200), (" HTTP/1.9", 200), (" HTTP/0.9", 505),
     (" HTTP/2.0", 505), (" HTTP/9.9", 505), ("", 400), (" HTTP/2", 400), (" HTTP/1.10", 400), (" http/1.1", 400),
     (" HTTP/1.1 x", 400), ("  HTTP/1.1", 400)],
)  # fmt: skip
def test_versions_of_http_are_told_apart(version: str, status: int, server: RunningServer) -> None:
    connection = server.connect(10)
    connection.sendall(f"GET /livez{version}\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.split(b" ")[1] == str(status).encode(), head
    assert head.startswith(b"HTTP/1.")
    if status != 200:
        assert json.loads(body)["error"]["type"] == "validation_error"


def test_a_transfer_coding_of_an_old_client_is_refused(server: RunningServer) -> None:
    connection = server.connect(10)
    head = POST.replace("HTTP/1.1", "HTTP/1.0") + "Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection.sendall(head.encode() + CHUNKED + NEXT)
    answers = read_all(connection)
    assert answers.startswith(b"HTTP/1.0 400 ")
    assert answers.count(b"HTTP/1.") == 1


@pytest.mark.parametrize(("options", "open_after"), [("close", 0), ("TE, close", 0), ("Close , x", 0), ("x", 1)])
def test_a_connection_is_closed_when_any_option_says_so(options: str, open_after: int, server: RunningServer) -> None:
    connection = server.connect(10)
    first = f"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: {options}\r\n\r\n".encode()
    connection.sendall(first + NEXT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert read_all(connection).count(b"HTTP/1.1 200 ") == 1 + open_after


def test_the_rest_of_a_refused_body_is_read_up_to_a_limit(server: RunningServer) -> None:
    connection = server.connect(30)
    connection.sendall(f"{POST}Content-Length: {2**40}\r\n\r\n".encode())
    assert connection.recv(12) == b"HTTP/1.1 413"
    part, sent = bytes(2**20), 0
    with connection, pytest.raises(OSError, match=r"reset|pipe"):
        while sent <= 4 * LINGER_BYTES:
            connection.sendall(part)
            sent += len(part)
    assert sent < 2 * LINGER_BYTES
