"""The edges of HTTP on a real socket: what is malformed, too large, too slow, too deep, pipelined or cut off."""

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from serving.parts import CHAT_MODEL, Parts
from serving.running import RunningServer, events_of, eventually, read_all

from mlxk.entrypoints.http.server.server import ServerLimits
from mlxk.entrypoints.settings import ServerSettings

MESSAGES = [{"role": "user", "content": "one two three"}]
CHAT = {"model": CHAT_MODEL, "messages": MESSAGES}
PATH = "/v1/chat/completions"


@pytest.fixture
def server() -> Iterator[RunningServer]:
    """Run a server with narrow limits."""
    limits = ServerLimits(max_body_bytes=1 << 20, max_header_bytes=8192, connections=64)
    with RunningServer(Parts(), limits) as running:
        yield running


def answer_to(server: RunningServer, data: bytes) -> tuple[bytes, Any]:
    """Send bytes on a connection of its own; return the head of the answer and its JSON."""
    connection = server.connect(10)
    connection.sendall(data)
    head, _, body = read_all(connection).partition(b"\r\n\r\n")
    return head, json.loads(body) if body.startswith(b"{") else body


def test_what_is_no_http_is_answered_as_json(server: RunningServer) -> None:
    for nonsense in (b"BAD\r\n\r\n", b"GET / HTTP/1.1\r\nbroken header\r\n\r\n", b"\x16\x03\x01\x00\xa5\r\n\r\n"):
        head, body = answer_to(server, nonsense)
        assert head.startswith(b"HTTP/1.") and b" 400 " in head.split(b"\r\n")[0]
        assert body["error"]["type"] == "validation_error"


def test_a_body_beyond_the_limit_is_refused_before_it_is_read(server: RunningServer) -> None:
    head, body = answer_to(
        server, f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40000000\r\n\r\n".encode()
    )
    assert b" 413 " in head.split(b"\r\n")[0]
    assert body["error"]["type"] == "payload_too_large"


def test_the_refusal_reaches_a_client_that_sends_everything_first(server: RunningServer) -> None:
    body = json.dumps({**CHAT, "user": "x" * (8 << 20)}).encode()
    status, _, answer = server.request("POST", PATH, body, {"Content-Type": "application/json"})
    assert (status, answer["error"]["type"]) == (413, "payload_too_large")


def test_a_chunked_body_beyond_the_limit_is_refused(server: RunningServer) -> None:
    connection = server.connect()
    connection.sendall(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    try:
        for _ in range(64):
            connection.sendall(chunk)
    except OSError:
        pass
    assert b" 413 " in read_all(connection).split(b"\r\n")[0]


def test_a_chunked_body_is_understood(server: RunningServer) -> None:
    data = json.dumps(CHAT).encode()
    request = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    head, body = answer_to(server, request.encode() + b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))
    assert b" 200 " in head.split(b"\r\n")[0]
    assert body["choices"][0]["message"]["content"] == "one two three"


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_length_that_is_no_length_is_answered(server: RunningServer, digits: int) -> None:
    head, body = answer_to(
        server, f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {'9' * digits}\r\n\r\n{{".encode()
    )
    assert re.match(rb"HTTP/1.1 4(00|13) ", head)
    assert body["status"] == "error"


def test_an_address_that_is_none_is_answered(server: RunningServer) -> None:
    head, body = answer_to(server, b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert body["error"]["type"] == "validation_error"


@pytest.mark.parametrize(
    "request_head",
    [
        "BAD",
        f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40000000",
        "GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + "y" * 20000,
    ],
    ids=["400", "413", "431"],
)
def test_what_the_application_never_sees_has_an_id_too(server: RunningServer, request_head: str) -> None:
    head, body = answer_to(server, f"{request_head}\r\n\r\n".encode())
    found = re.search(rb"(?im)^x-request-id: ([A-Za-z0-9._-]+)\r?$", head)
    assert found is not None
    assert body["request_id"] == found[1].decode()


@pytest.mark.parametrize("key", ["ключ", "clé à", "鍵"])
def test_a_key_may_be_of_any_letters(key: str) -> None:
    sent = key.encode().decode("latin-1")  # as a client sends the bytes of UTF-8
    with RunningServer(Parts(settings=ServerSettings(api_keys=(key,)))) as server:
        assert server.get("/v1/models", Authorization=f"Bearer {sent}")[0] == 200
        assert server.get("/v1/models", **{"X-API-Key": sent})[0] == 200
        assert server.get("/v1/models", Authorization=f"Bearer {sent[:-1]}")[0] == 401


def test_the_id_of_a_client_comes_back_with_a_refusal(server: RunningServer) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: mine-1\r\nContent-Length: 40000000\r\n\r\n"
    _, body = answer_to(server, head.encode())
    assert body["request_id"] == "mine-1"


def test_headers_beyond_the_limit_are_refused(server: RunningServer) -> None:
    head, body = answer_to(server, b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 20000 + b"\r\n\r\n")
    assert b" 431 " in head.split(b"\r\n")[0]
    assert body["error"]["type"] == "payload_too_large"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"[" * 50_000, "payload_too_large"),
        (b'{"a":' * 50_000, "payload_too_large"),
        (b'{"a": [' + b"0," * 499_999 + b"0]}", "payload_too_large"),
        (b'{"model": "m", "messages": ' + b"[" * 80 + b"]" * 80 + b"}", "payload_too_large"),
        (b"", "validation_error"),
        (b"{", "validation_error"),
        (b"null", "validation_error"),
        (b'"text"', "validation_error"),
        (b'{"temperature": NaN}', "validation_error"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "validation_error"),
        (b"\xff\xfe{}", "validation_error"),
        (b'{"model": "\xff"}', "validation_error"),
    ],
)
def test_a_body_that_is_no_usable_json_is_refused(server: RunningServer, body: bytes, kind: str) -> None:
    status, _, answer = server.request("POST", PATH, body, {"Content-Type": "application/json"})
    assert (answer["error"]["type"], 400 <= status < 500) == (kind, True)


def test_a_body_of_another_kind_is_refused(server: RunningServer) -> None:
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    status, _, answer = server.request("POST", PATH, json.dumps(CHAT).encode(), form)
    assert (status, answer["error"]["type"]) == (415, "unsupported_media_type")


def test_methods_are_answered_as_http_wants(server: RunningServer) -> None:
    status, headers, answer = server.get(PATH)
    assert (status, answer["error"]["type"]) == (405, "method_not_allowed")
    assert "POST" in headers["allow"]
    status, headers, body = server.request("HEAD", "/v1/models")
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) > 0
    status, headers, _ = server.request("OPTIONS", PATH)
    assert "POST" in headers["allow"]
    assert server.request("BREW", "/livez")[0] in {400, 405}
    assert server.get("/nowhere")[2]["error"]["type"] == "not_found"


def test_a_connection_serves_many_requests(server: RunningServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    sockets = set()
    for _ in range(3):
        connection.request("POST", PATH, json.dumps(CHAT), {"Content-Type": "application/json"})
        assert b"one two three" in connection.getresponse().read()
        sockets.add(connection.sock)
    assert len(sockets) == 1
    connection.close()


def test_pipelined_requests_are_answered_in_order(server: RunningServer) -> None:
    data = json.dumps({**CHAT, "stream": True}).encode()
    connection = server.connect()
    connection.sendall(
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
        b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n"
        + f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        + data
    )
    answer = read_all(connection)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"404", b"200"]
    assert answer.endswith(b"0\r\n\r\n")
    assert b"[DONE]" in answer


def test_an_old_client_gets_a_stream_without_chunks(server: RunningServer) -> None:
    data = json.dumps({**CHAT, "stream": True}).encode()
    connection = server.connect()
    connection.sendall(f"POST {PATH} HTTP/1.0\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    answer = read_all(connection)
    assert b"chunked" not in answer.lower()
    assert events_of(answer)[-1] == "[DONE]"


def test_a_client_may_ask_before_it_sends(server: RunningServer) -> None:
    data = json.dumps(CHAT).encode()
    connection = server.connect()
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {len(data)}\r\n"
    connection.sendall(f"{head}Connection: close\r\n\r\n".encode())
    assert connection.recv(65536).startswith(b"HTTP/1.1 100")
    connection.sendall(data)
    assert b"one two three" in read_all(connection)


@pytest.mark.parametrize(
    ("start", "length", "status"),
    [("POST /v1/unload", "Content-Length: 0\r\n", 200), ("GET /livez", "", 200), ("GET /livez", "X-A: b\r\n", 200)],
)
def test_a_request_without_a_body_needs_no_invitation(
    server: RunningServer, start: str, length: str, status: int
) -> None:
    connection = server.connect(5)
    connection.sendall(
        f"{start} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nConnection: close\r\n{length}\r\n".encode()
    )
    assert read_all(connection).startswith(f"HTTP/1.1 {status} ".encode())


def test_a_body_beyond_the_limit_is_not_invited(server: RunningServer) -> None:
    head, _ = answer_to(
        server,
        f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 40000000\r\n\r\n".encode(),
    )
    assert head.startswith(b"HTTP/1.1 413 ")


def test_a_connection_goes_on_after_a_request_that_needed_no_invitation(server: RunningServer) -> None:
    data = json.dumps(CHAT).encode()
    expecting = "Host: localhost\r\nExpect: 100-continue\r\n"
    with server.connect(5) as connection:
        connection.sendall(f"GET /livez HTTP/1.1\r\n{expecting}\r\n".encode())
        answer = b""
        while not answer.endswith(b'{"status": "ok"}'):  # head and body may come apart
            answer += connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200 ")
        connection.sendall(
            f"POST {PATH} HTTP/1.1\r\n{expecting}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(data)
        assert b"one two three" in read_all(connection)


@pytest.mark.parametrize("cut", [1, 20, 60, 120, 200])
def test_a_request_cut_off_anywhere_leaves_nothing_behind(server: RunningServer, cut: int) -> None:
    data = json.dumps(CHAT).encode()
    request = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
    connection = server.connect()
    connection.sendall(request[: min(cut, len(request) - 1)])
    connection.close()
    assert server.get("/livez")[0] == 200
    assert server.parts.generator.requests == []


def test_a_request_that_does_not_arrive_is_given_up() -> None:
    with RunningServer(Parts(), ServerLimits(header_seconds=0.3, request_seconds=0.6)) as server:
        slow_head, slow_body = server.connect(), server.connect()
        slow_head.sendall(b"GET /livez HTTP/1.1\r\nHost:")
        slow_body.sendall(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert b" 408 " in read_all(slow_head).split(b"\r\n")[0]
        assert b" 408 " in read_all(slow_body).split(b"\r\n")[0]


def test_a_request_that_arrives_while_the_server_stops_is_told_so() -> None:
    data = json.dumps(CHAT).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    with RunningServer(Parts()) as server:
        slow, stalled, silent = server.connect(), server.connect(), server.connect()
        slow.sendall(head + data[:10])
        stalled.sendall(head + data[:10])
        assert server.get("/livez")[0] == 200
        server.hurry()
        assert eventually(lambda: server.parts.application.lifecycle.draining)
        slow.sendall(data[10:])
        answers = [read_all(connection) for connection in (slow, stalled)]
        assert [answer.split()[1] for answer in answers] == [b"503", b"503"]
        assert all(b"server_shutdown" in answer and b"Retry-After" in answer for answer in answers)
        assert read_all(silent) == b""
        assert eventually(lambda: server.ended_well is True)


def test_clients_that_send_on_while_the_server_stops_read_why_they_are_refused() -> None:
    clients = 20
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000\r\n\r\n".encode()

    def upload(connection: socket.socket) -> bytes:
        connection.sendall(head)
        for _ in range(10):
            connection.sendall(bytes(100_000))
            time.sleep(0.2)
        return read_all(connection)

    with RunningServer(Parts()) as server, ThreadPoolExecutor(clients) as pool:
        answers = [pool.submit(upload, server.connect()) for _ in range(clients)]
        assert eventually(lambda: server.get("/livez")[0] == 200)
        server.hurry()
        assert [each.result().split(b"\r\n")[0] for each in answers] == [b"HTTP/1.1 503 Service Unavailable"] * clients


def test_a_server_that_stops_does_not_wait_for_a_request_that_does_not_arrive() -> None:
    with RunningServer(Parts()) as server:
        stalled = server.connect()
        stalled.sendall(b"GET /livez HTTP/1.1\r\nHost:")
        assert server.get("/livez")[0] == 200
        server.hurry()
        assert eventually(lambda: server.ended_well is not None, 15)  # the request has twenty seconds to arrive
        assert b" 503 " in read_all(stalled).split(b"\r\n")[0]


def test_idle_connections_make_room_for_new_ones(server: RunningServer) -> None:
    idle = [server.connect() for _ in range(80)]
    for connection in idle[::2]:
        connection.sendall(b"GET /li")
    began = time.monotonic()
    assert server.get("/livez")[0] == 200
    assert time.monotonic() - began < 15  # less than what is left of a connection's twenty seconds
    for connection in idle:
        connection.close()


def test_a_flood_of_nonsense_does_not_keep_others_waiting(server: RunningServer) -> None:
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            try:
                with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
                    connection.sendall(b"\x00\xff" * 500 + b"\r\n\r\n")
                    read_all(connection)
            except OSError:
                continue

    threads = [threading.Thread(target=flood, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    slowest = 0.0
    for _ in range(20):
        began = time.monotonic()
        assert server.get("/readyz")[0] == 200
        slowest = max(slowest, time.monotonic() - began)
    stop.set()
    for thread in threads:
        thread.join()
    assert slowest < 10


def test_a_fault_of_the_application_is_answered_and_logged_without_its_text() -> None:
    def broken(request: Any) -> Any:
        raise RuntimeError("canary-in-a-fault")

    parts = Parts()
    parts.generator._answers = broken
    with RunningServer(parts) as server:
        status, _, answer = server.post(PATH, CHAT)
        assert (status, answer["error"]["type"]) == (500, "internal_error")
        assert "canary" not in json.dumps(answer)
        assert server.post("/v1/unload", {})[0] == 200
    logged = parts.log.named("a request failed unexpectedly")
    assert logged[0].fields["error"] == "RuntimeError"
    assert "canary" not in str(parts.log.events)


def test_an_application_that_exits_is_answered() -> None:
    def leaving(request: Any) -> Any:
        raise SystemExit(3)

    parts = Parts()
    parts.generator._answers = leaving
    with RunningServer(parts) as server:
        status, _, answer = server.post(PATH, CHAT)
        assert (status, answer["error"]["type"]) == (500, "internal_error")
        assert server.get("/livez")[0] == 200
        assert eventually(lambda: parts.application._limit.admitted == 0)
