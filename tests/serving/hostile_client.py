"""A program that attacks a server, or watches whether it is ready meanwhile; each in a process of its own.

``attack PORT REQUESTS LARGE`` sends hostile requests in every way at once and prints the statuses of large bodies.
``watch PORT`` asks for readiness until its input ends and prints the slowest answer in seconds.
"""

import contextlib
import http.client
import json
import os
import random
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

PATH = "/v1/chat/completions"
MODEL = "org/chat-model"
MESSAGES = [{"role": "user", "content": "one two three"}]
LARGE = 40_000_000
"""Bytes of a large body, which the server takes; what is in it then stands in the way."""
PATHS = (
    *(PATH, PATH, "/v1/completions", "/v1/unload", "/v1/responses", "/v1/responses/resp_1", "/v1/messages"),
    *("/v1/messages/count_tokens", "/api/chat", "/api/generate", "/api/embed", "/api/show", "/api/ps", "/", "/v1"),
    *("/v1/models/../../etc/passwd", "/%00", "//"),
)
OF_OTHER_APIS = (
    {"input": [{"type": 5}, [], {"type": "function_call", "arguments": [], "call_id": None}], "stream": True},
    {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": {"x": 1}}]}], "tools": [{"type": []}]},
    {"input": "x", "previous_response_id": "a" * 5000, "tools": [{"type": "namespace", "name": "", "tools": [{}]}]},
    {
        "max_tokens": 5,
        "system": [{"type": "text"}],
        "messages": [{"role": "user", "content": [{"type": "tool_result"}]}],
    },
    {"max_tokens": 5, "messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": [[]]}]}] * 50},
    {"messages": [{"role": "tool", "content": None, "images": ["%%%"]}], "options": {"num_ctx": -1, "stop": 5}},
    {"prompt": "x", "keep_alive": "1x", "format": [[]], "options": [1], "images": [None], "context": ["x"]},
    {"messages": MESSAGES, "options": {"num_predict": 2}, "keep_alive": -1},
    {"max_tokens": 2, "messages": MESSAGES, "stream": True},
    {"input": "one two", "max_output_tokens": 2, "stream": True},
)
"""Bodies for the Responses, Messages and Ollama APIs; the last ones are right."""
THREADS = 8
HALF_OPEN = 20


def connect(port: int, timeout: float = 20.0) -> socket.socket:
    """Return a connection on which nothing was said."""
    return socket.create_connection(("127.0.0.1", port), timeout=timeout)


def hostile(chance: random.Random) -> bytes:
    """Return the bytes of one request that nobody should send."""
    body = chance.choice(
        [
            b"[" * chance.randint(1, 60_000),
            b'{"messages":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
            b'{"model": ' * 9000,
            os.urandom(200),
            b"\xff\xfe\x00",
            json.dumps({"model": MODEL, "messages": MESSAGES, "n": chance.choice([-1, 10**9, "x"])}).encode(),
            json.dumps({"model": MODEL, "messages": [[]] * 500}).encode(),
            json.dumps({"model": MODEL, "prompt": [[1, 2], ["x"]], "messages": None}).encode(),
            json.dumps({"model": ["x"], "messages": {"role": "user"}, "stop": [[]], "logit_bias": {"a": "b"}}).encode(),
            json.dumps({"model": MODEL, "messages": MESSAGES, "stream": True, "max_tokens": 2}).encode(),
            b'{"model": "' + b"a" * 100_000 + b'"}',
            *(json.dumps({"model": MODEL, **fields}).encode() for fields in chance.sample(OF_OTHER_APIS, 5)),
        ]
    )
    length = chance.choice([len(body), len(body) + 10, max(0, len(body) - 3), LARGE, 10 * LARGE, -1])
    host = chance.choice(["localhost", "evil.example", "localhost\r\nHost: evil.example", "\x7f", "[::1"])
    origin = chance.choice(["", "Origin: https://evil.example\r\n", "Origin: null\r\n"])
    kind = chance.choice(["application/json", "text/plain", "multipart/form-data; boundary=x"])
    coding = chance.choice(["", "", "Transfer-Encoding: chunked\r\n", "Transfer-Encoding: gzip\r\n"])
    path = chance.choice(PATHS)
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


def send_hostile(port: int, seed: int, count: int) -> None:
    """Send hostile requests, and wait for an answer or not."""
    chance = random.Random(seed)
    for _ in range(count):
        with contextlib.suppress(OSError), connect(port, 0.5) as connection:
            connection.sendall(hostile(chance))
            if chance.random() < 0.7:
                connection.settimeout(0.05)
                connection.recv(4096)


def filled(start: bytes, piece: bytes, end: bytes) -> bytes:
    """Return a large body that repeats one piece."""
    return start + piece * ((LARGE - len(start) - len(end)) // len(piece)) + end


LARGE_BODIES: tuple[Callable[[], bytes], ...] = (
    # A million empty lists take a parser longer than anything else of their length.
    lambda: filled(b'{"model": "x", "messages": [', b"[],", b"0]}"),
    lambda: filled(b'{"model": "x", "messages": [{"role": "user", "content": "', b"a", b'"}]}'),
    lambda: b"{" + b",".join(b'"%085d":1' % name for name in range(430_000)) + b"}",
    lambda: filled(b'{"model": "x", "logit_bias": [', b"[" * 900 + b"]" * 900 + b",", b"0]}"),
    lambda: filled(b"", b"[", b""),
    lambda: filled(b'{"model": "', b"\xff\xfe", b'"}'),
    lambda: filled(b'{"n": ', b"1", b"}"),
    # As many messages as a body may hold.
    lambda: filled(b'{"model": "x", "messages": [{}', b",{" + b" " * 167 + b"}", b"]}"),
)


def send_large(port: int, bodies: Iterator[Callable[[], bytes]], statuses: list[int]) -> None:
    """Send large bodies, each whole, and note the statuses."""
    for make in bodies:
        body = make()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", PATH, body, {"Content-Type": "application/json", "Connection": "close"})
            statuses.append(connection.getresponse().status)


def dribble(port: int, over: threading.Event) -> None:
    """Send the headers of requests a byte at a time, for as long as the server bears it."""
    while not over.is_set():
        with contextlib.suppress(OSError), connect(port) as connection:
            for byte in b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 100:
                connection.sendall(bytes([byte]))
                if over.wait(0.05):
                    break


def attack(port: int, requests: int, large: int) -> list[int]:
    """Attack in every way at once; return the statuses of large bodies."""
    over, statuses = threading.Event(), list[int]()
    bodies = iter([LARGE_BODIES[index % len(LARGE_BODIES)] for index in range(large)])
    half_open = [connect(port) for _ in range(HALF_OPEN)]
    for connection in half_open:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n")
    slow = threading.Thread(target=dribble, args=(port, over))
    attackers = [
        threading.Thread(target=send_hostile, args=(port, seed, requests // THREADS)) for seed in range(THREADS)
    ]
    attackers.append(threading.Thread(target=send_large, args=(port, bodies, statuses)))
    for thread in (slow, *attackers):
        thread.start()
    for thread in attackers:
        thread.join()
    over.set()
    slow.join()
    for connection in half_open:
        connection.close()
    return statuses


def watch(port: int) -> float:
    """Ask for readiness until the input ends; return the longest time in seconds an answer took, infinite if none."""
    slowest = 0.0
    while not select.select([sys.stdin], [], [], 0.02)[0]:
        began, ready = time.monotonic(), False
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/readyz")
            ready = connection.getresponse().status == 200
        slowest = max(slowest, time.monotonic() - began if ready else float("inf"))
    return slowest


if __name__ == "__main__":
    numbers = [int(each) for each in sys.argv[2:]]
    sys.stdout.write(json.dumps(attack(*numbers) if sys.argv[1] == "attack" else watch(*numbers)))
