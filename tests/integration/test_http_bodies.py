"""Content encodings of request bodies, and the proxy of embeddings, on a real socket."""

import gzip
import http.client
import json
import random
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.text_generator import InMemoryTextGenerator
from serving.forms import FORM, encoded_form
from serving.parts import CHAT_MODEL, EMBEDDING_MODEL, SPEECH_MODEL, Parts
from serving.running import RunningServer, eventually
from serving.web import Web, certificates

from mlxk.entrypoints.http.server.server import ServerLimits
from mlxk.entrypoints.settings import MIB, ServerSettings

CHAT = "/v1/chat/completions"
ASKED = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": "one two three"}]}
BODY = json.dumps(ASKED).encode()
GZIPPED = gzip.compress(BODY, mtime=0)
SOUND = Path(__file__).parents[1] / "sounds" / "hello.flac"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Run a server that takes bodies of one MiB, beside recordings."""
    limits = ServerLimits(max_body_bytes=64 * MIB)
    with RunningServer(Parts(settings=ServerSettings(max_body_mib=1)), limits) as running:
        yield running


def send(
    server: RunningServer, data: bytes, encoding: str | None, path: str = CHAT, kind: str = "application/json"
) -> tuple[int, dict[str, str], Any]:
    """Send a body as it is, with a content encoding declared."""
    headers = {"Content-Type": kind} | ({} if encoding is None else {"Content-Encoding": encoding})
    return server.request("POST", path, data, headers)


def raw_deflate(data: bytes) -> bytes:
    """Compress without the header of zlib, as some clients do for ``deflate``."""
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflate.compress(data) + deflate.flush()


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("x-gzip", gzip.compress),
        ("gzip", lambda data: gzip.compress(data[:40]) + gzip.compress(data[40:])),
        ("gzip", lambda data: gzip.compress(data) + bytes(1)),
        ("gzip", lambda data: gzip.compress(data[:40]) + bytes(3) + gzip.compress(data[40:]) + bytes(200_000)),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("identity", bytes),
        ("", bytes),
        ("identity, gzip", gzip.compress),
        ("deflate, gzip", lambda data: gzip.compress(zlib.compress(data))),
        ("gzip, gzip", lambda data: gzip.compress(gzip.compress(data))),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/embeddings", "/v1/unload"])
def test_compressed_bodies_are_read_on_every_path(
    encoding: str, encode: Callable[[bytes], bytes], path: str, server: RunningServer
) -> None:
    bodies: dict[str, Any] = {
        CHAT: ASKED,
        "/v1/completions": {"model": CHAT_MODEL, "prompt": "one"},
        "/v1/embeddings": {"model": EMBEDDING_MODEL, "input": "one"},
        "/v1/unload": {"model": None},
    }
    body = json.dumps(bodies[path]).encode()
    status, _, answer = send(server, encode(body), encoding, path)
    assert status == 200, answer
    assert answer["object"] == server.post(path, bodies[path])[2]["object"]


@pytest.mark.parametrize("encode", [gzip.compress, zlib.compress, raw_deflate])
def test_a_body_of_several_pieces_is_read(encode: Callable[[bytes], bytes], server: RunningServer) -> None:
    noise = random.Random(1).randbytes(200_000).hex()
    body = json.dumps({**ASKED, "user": noise}).encode()
    assert len(encode(body)) > 2 * 65536
    assert send(server, encode(body), "gzip" if encode is gzip.compress else "deflate")[0] == 200


def test_a_file_of_many_members_is_read_and_one_of_endless_members_refused(server: RunningServer) -> None:
    empty = gzip.compress(b"", mtime=0)
    assert send(server, empty * 4095 + GZIPPED, "gzip")[0] == 200
    status, _, answer = send(server, empty * 40_000 + GZIPPED, "gzip")
    assert (status, answer["error"]["type"]) == (400, "validation_error")
    assert "Compress it whole" in answer["error"]["hint"]


def test_a_compressed_recording_is_heard(server: RunningServer) -> None:
    body = encoded_form([("model", SPEECH_MODEL), ("file", ("hello.flac", SOUND.read_bytes()))])
    status, _, answer = send(server, gzip.compress(body), "gzip", "/v1/audio/transcriptions", FORM)
    assert (status, answer["text"]) == (200, "Hello there. How are you?")


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, br", "gzip;q=1", "gzip, gzip, gzip", "\xff"])
def test_an_encoding_that_is_not_known_is_named(encoding: str, server: RunningServer) -> None:
    status, headers, answer = send(server, gzip.compress(BODY), encoding)
    assert (status, answer["error"]["type"]) == (415, "unsupported_media_type")
    assert answer["error"]["message"].startswith("Content-Encoding: ")
    assert headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("gzip", BODY),
        ("gzip", GZIPPED[:-9]),
        ("gzip", GZIPPED[:12]),
        ("gzip", GZIPPED + b"more"),
        ("gzip", GZIPPED + bytes(70_000) + b"more"),
        ("gzip", bytes(1) + GZIPPED),
        ("gzip", bytes(10)),
        ("deflate", zlib.compress(BODY) + bytes(1)),
        ("gzip", zlib.compress(BODY)),
        ("deflate", BODY),
        ("deflate", zlib.compress(BODY)[:-2]),
        ("deflate", zlib.compress(BODY) + b"x"),
        ("deflate", GZIPPED),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)
def test_a_body_that_is_not_in_its_encoding_is_refused(encoding: str, data: bytes, server: RunningServer) -> None:
    status, _, answer = send(server, data, encoding)
    assert (status, answer["error"]["type"]) == (400, "validation_error")
    assert f"Content-Encoding: {encoding}" in answer["error"]["message"]


@pytest.mark.parametrize("encode", [gzip.compress, zlib.compress, lambda data: gzip.compress(gzip.compress(data))])
def test_a_body_that_grows_beyond_the_limit_is_refused(encode: Callable[[bytes], bytes], server: RunningServer) -> None:
    encoding = {1: "gzip", 2: "deflate"}.get(1 if encode is gzip.compress else 2 if encode is zlib.compress else 3)
    bomb = encode(b" " * (64 * MIB))
    status, _, answer = send(server, bomb, encoding or "gzip, gzip")
    assert (status, answer["error"]["type"]) == (413, "payload_too_large")


@pytest.mark.parametrize(("spaces", "status"), [(MIB - len(BODY), 200), (MIB - len(BODY) + 1, 413)])
def test_the_limit_counts_what_is_decoded(spaces: int, status: int, server: RunningServer) -> None:
    padded = BODY + b" " * spaces
    assert send(server, padded, None)[0] == status
    assert send(server, gzip.compress(padded), "gzip")[0] == status


@pytest.mark.parametrize("origin", [None, "http://localhost:3000"])
@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "text/plain", "application/octet-stream", "text/json"]
)
def test_json_of_another_declared_type_is_read_unless_a_browser_sends_it(
    kind: str, origin: str | None, server: RunningServer
) -> None:
    headers = {"Content-Type": kind} | ({} if origin is None else {"Origin": origin})
    status, _, answer = server.request("POST", CHAT, BODY, headers)
    assert status == (200 if origin is None else 415), answer
    for browser in ({"Sec-Fetch-Site": "cross-site"}, {"Referer": "http://a.example/"}, {"Cookie": "a=b"}):
        assert server.request("POST", CHAT, BODY, {"Content-Type": kind, **browser})[0] == 415


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "image/png", "application/xml"])
def test_a_body_that_is_declared_as_something_else_is_refused(kind: str, server: RunningServer) -> None:
    assert server.request("POST", CHAT, BODY, {"Content-Type": kind})[0] == 415


class Backend:
    """An embeddings server that answers with given bytes."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with connection:
            connection.settimeout(10)
            received = b""
            while b"\r\n\r\n" not in received or not received.endswith(b"}"):
                received += connection.recv(65536)
            connection.sendall(self._answer)

    def close(self) -> None:
        """Wait for its end."""
        self._thread.join(10)
        self._socket.close()


def answered(status: str, *headers: str, body: bytes = b'{"object": "list"}') -> bytes:
    """Return an answer of a backend."""
    head = "".join(f"{each}\r\n" for each in (*headers, f"Content-Length: {len(body)}"))
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode("latin-1") + body


JSON = "Content-Type: application/json"


def through(answer: bytes) -> tuple[int, dict[str, str], Any]:
    """Ask for vectors of a backend with this answer."""
    backend = Backend(answer)
    try:
        with RunningServer(Parts(settings=ServerSettings(embed_backend=backend.url))) as front:
            connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=60)
            connection.request(
                "POST", "/v1/embeddings", b'{"model": "any", "input": "one"}', {"Content-Type": JSON[14:]}
            )
            response = connection.getresponse()
            kept = {name.lower(): value for name, value in response.getheaders()}
            document = json.loads(response.read())
            connection.close()
            return response.status, kept, document
    finally:
        backend.close()


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        ("200 OK", (JSON,)),
        ("200", (f"{JSON}; charset=utf-8", "Set-Cookie: a=b", "X-Other: 1", "Access-Control-Allow-Origin: *")),
        ("400 Bad Request", (JSON,)),
        ("503 Service Unavailable", (JSON, "Retry-After: 7")),
        ("429 Too Many", (JSON, "Retry-After: soon")),
    ],
)
def test_valid_answers_of_a_backend_are_passed_on_with_nothing_else(status: str, headers: tuple[str, ...]) -> None:
    code = int(status[:3])
    got, kept, document = through(answered(status, *headers, body=b'{"object": "list", "data": []}'))
    assert (got, kept["content-type"], document) == (code, "application/json", {"object": "list", "data": []})
    assert "set-cookie" not in kept and "x-other" not in kept and "access-control-allow-origin" not in kept
    assert kept.get("retry-after") == ("7" if code == 503 else None)


@pytest.mark.parametrize(("given", "passed"), [("inputs-truncated", True), ("<b>", False), ("x" * 70 + " y", False)])
def test_what_a_backend_did_to_the_inputs_is_passed_on_when_it_is_codes(given: str, passed: bool) -> None:
    _, kept, _ = through(answered("200 OK", JSON, f"X-Mlxk-Adaptations: {given}"))
    assert kept.get("x-mlxk-adaptations") == (given if passed else None)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (answered("302 Found", JSON, "Location: http://elsewhere.example/"), "status 302"),
        (answered("204 No Content", JSON, body=b""), "status 204"),
        (answered("999 Odd", JSON), "status 999"),
        (answered("600 Odd", JSON), "status 600"),
        (answered("200 OK", "Content-Type: text/html", body=b"<html>"), "no JSON object"),
        (answered("200 OK", body=b"{}"), "no JSON object"),
        (answered("200 OK", "Content-Type: application/json\x0b\x00x"), "no JSON object"),
        (answered("200 OK", JSON, body=b"[]"), "no JSON object"),
        (answered("200 OK", JSON, body=b'{"a'), "no JSON object"),
        (answered("500 Oops", "Content-Type: text/plain", body=b"oops"), "status 500"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{", "cut off"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "not HTTP"),
        (b"HTTP/1.1 abc\r\n\r\n", "not HTTP"),
        (b"", "not HTTP"),
        (answered("200 OK", "X: " + "y" * 70000), "not HTTP"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(zlib.crc32(value)),
)
def test_an_answer_that_is_none_is_reported_and_not_called_unreachable(answer: bytes, said: str) -> None:
    status, headers, document = through(answer)
    assert (status, document["error"]["type"]) == (502, "network_error")
    assert said in document["error"]["message"], document
    assert "reach" not in document["error"]["message"]
    assert headers["content-type"] == "application/json"


def test_a_backend_with_https_is_asked_in_tls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as backend:
        address = f"https://127.0.0.1:{backend.getsockname()[1]}"
        said = bytearray()

        def refuse() -> None:
            connection, _ = backend.accept()
            with connection:
                said.extend(connection.recv(2))

        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        with RunningServer(Parts(settings=ServerSettings(embed_backend=address))) as front:
            status, _, document = front.post("/v1/embeddings", {"model": "any", "input": "one"})
        thread.join(10)
    assert said == b"\x16\x03"  # how a handshake begins
    assert (status, document["error"]["message"][:27]) == (502, "Embed backend unreachable ("), document


def test_a_backend_whose_certificate_nobody_vouches_for_is_not_asked(tmp_path: Path) -> None:
    shown, _ = certificates(tmp_path, "localhost")
    with Web({}, shown) as backend:
        settings = ServerSettings(embed_backend=f"https://localhost:{backend.port}")
        with RunningServer(Parts(settings=settings)) as front:
            status, _, document = front.post("/v1/embeddings", {"model": "any", "input": "one"})
        assert backend.heads == []
    assert status == 502
    assert document["error"]["message"] == "Embed backend unreachable (its certificate is not trusted)."


@pytest.mark.parametrize(
    ("address", "reason"),
    [("http://127.0.0.1:1", "connection refused"), ("http://no-such-host.invalid:80", "its name is not known")],
)
def test_a_backend_that_cannot_be_reached_is_said_to_be_so(address: str, reason: str) -> None:
    with RunningServer(Parts(settings=ServerSettings(embed_backend=address))) as front:
        status, _, document = front.post("/v1/embeddings", {"model": "any", "input": "one"})
    assert (status, document["error"]["message"]) == (502, f"Embed backend unreachable ({reason}).")


def test_a_busy_model_stays_loaded_and_the_client_is_told() -> None:
    with RunningServer(Parts(generator=InMemoryTextGenerator(step_seconds=0.01))) as alone:
        assert alone.post(CHAT, ASKED)[0] == 200
        assert alone.post("/v1/unload", {"model": CHAT_MODEL})[2] == {
            "object": "list", "data": [CHAT_MODEL], "busy": [],
        }  # fmt: skip
        status, _, refused = alone.post("/v1/unload", {"model": CHAT_MODEL})
        assert (status, refused["error"]["param"]) == (400, "model")
        connection = http.client.HTTPConnection("127.0.0.1", alone.port, timeout=60)
        words = "word " * 4000
        asked = {**ASKED, "stream": True, "messages": [{"role": "user", "content": words}]}
        connection.request("POST", CHAT, json.dumps(asked), {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read1(10)
        for name in (CHAT_MODEL, CHAT_MODEL.rpartition("/")[2]):
            status, _, refused = alone.post("/v1/unload", {"model": name})
            assert (status, refused["error"]["type"], refused["error"]["param"]) == (409, "locks_present", "model")
            assert refused["error"]["retryable"] is True
        status, _, listed = alone.post("/v1/unload", {})
        assert (status, listed["data"], listed["busy"]) == (200, [], [CHAT_MODEL])
        response.close()
        connection.close()
        assert eventually(lambda: alone.post("/v1/unload", {"model": CHAT_MODEL})[0] == 200, 30)
