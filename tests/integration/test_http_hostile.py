"""Thousands of hostile requests: the server answers or hangs up, stays reachable, and keeps nothing."""

import contextlib
import json
import os
import random
import socket
import threading
import time

from serving.parts import CHAT_MODEL, Parts
from serving.running import RunningServer, eventually

from mlxk.entrypoints.http.server.server import ServerLimits

REQUESTS = 1500
PATH = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "one two three"}]


def hostile(chance: random.Random) -> bytes:
    """Return the bytes of one request that nobody should send."""
    body = chance.choice(
        [
            b"[" * chance.randint(1, 60_000),
            b'{"model": ' * 9000,
            os.urandom(200),
            b"\xff\xfe\x00",
            json.dumps({"model": CHAT_MODEL, "messages": MESSAGES, "n": chance.choice([-1, 10**9, "x"])}).encode(),
            json.dumps({"model": CHAT_MODEL, "messages": [[]] * 500}).encode(),
            json.dumps({"model": CHAT_MODEL, "prompt": [[1, 2], ["x"]], "messages": None}).encode(),
            json.dumps({"model": ["x"], "messages": {"role": "user"}, "stop": [[]], "logit_bias": {"a": "b"}}).encode(),
            json.dumps({"model": CHAT_MODEL, "messages": MESSAGES, "stream": True, "max_tokens": 2}).encode(),
            b'{"model": "' + b"a" * 100_000 + b'"}',
        ]
    )
    length = chance.choice([len(body), len(body) + 10, max(0, len(body) - 3), 40_000_000, -1])
    host = chance.choice(["localhost", "evil.example", "localhost\r\nHost: evil.example", "\x7f", "[::1"])
    origin = chance.choice(["", "Origin: https://evil.example\r\n", "Origin: null\r\n"])
    kind = chance.choice(["application/json", "text/plain", "multipart/form-data; boundary=x"])
    coding = chance.choice(["", "", "Transfer-Encoding: chunked\r\n", "Transfer-Encoding: gzip\r\n"])
    path = chance.choice([PATH, "/v1/completions", "/v1/models/../../etc/passwd", "/%00", "//", "/v1/unload"])
    method = chance.choice(["POST", "POST", "GET", "DELETE", "PRI", "get"])
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{origin}{coding}Content-Type: {kind}\r\n"
    request = f"{head}Content-Length: {length}\r\n\r\n".encode() + body
    return (
        request * 2
        if chance.random() < 0.1
        else request[: chance.randint(1, len(request))]
        if chance.random() < 0.3
        else request
    )


def attack(server: RunningServer, seed: int, count: int) -> None:
    """Send hostile requests, and wait for an answer or not."""
    chance = random.Random(seed)
    for _ in range(count):
        with contextlib.suppress(OSError), server.connect(0.5) as connection:
            connection.sendall(hostile(chance))
            if chance.random() < 0.7:
                connection.settimeout(0.05)
                connection.recv(4096)


def test_hostile_requests_neither_stop_nor_fill_the_server() -> None:
    with RunningServer(Parts(), ServerLimits(max_body_bytes=1 << 20, connections=128, request_seconds=2)) as server:
        half_open = [server.connect() for _ in range(20)]
        for connection in half_open:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n")
        threads = [threading.Thread(target=attack, args=(server, seed, REQUESTS // 8)) for seed in range(8)]
        for thread in threads:
            thread.start()
        slowest = 0.0
        while any(thread.is_alive() for thread in threads):
            began = time.monotonic()
            assert server.get("/readyz")[0] == 200
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.05)
        for connection in half_open:
            connection.close()
        assert slowest < 1
        assert server.post(PATH, {"model": CHAT_MODEL, "messages": MESSAGES})[0] == 200
        assert eventually(lambda: server.parts.application._admission.admitted == 0)
        assert eventually(lambda: len(server.server._channels()) == 0, 10)
        assert not server.parts.log.named("a request failed unexpectedly")
        assert not server.parts.log.named("an answer could not be delivered")
    assert server.ended_well


def test_a_port_scan_is_no_trouble() -> None:
    with RunningServer(Parts(), ServerLimits(connections=64)) as server:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=1):
                pass
        assert server.get("/livez")[0] == 200
