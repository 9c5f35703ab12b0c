"""A chat page opened from a file (nChat) and ``serve --cors-origin null``: its requests, as a browser sends them."""

import base64
import http.client
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
from doubles.text_generator import InMemoryTextGenerator
from serving.forms import FORM, encoded_form
from serving.parts import CHAT_MODEL, EYE, VISION, Parts
from serving.program import ServedProgram
from serving.running import RunningServer

from mlxk.domain.errors import ExecutionError, MlxkError
from mlxk.domain.generation.image_table import MARKER
from mlxk.domain.generation.request import GenerationRequest
from mlxk.entrypoints.http.server.server import ServerLimits
from mlxk.entrypoints.settings import ServerSettings

pytestmark = [pytest.mark.e2e, pytest.mark.mlx]

BUILT_IN = Path(__file__).parents[2] / "adapters" / "builtin" / "models"
CHAT = "/v1/chat/completions"
TRANSCRIPTIONS = "/v1/audio/transcriptions"
SIMPLE_TYPES = {"multipart/form-data", "text/plain", "application/x-www-form-urlencoded"}
"""Content types for which a browser asks no leave."""
SAFE_HEADERS = {"cache-control", "content-language", "content-length", "content-type", "expires", "last-modified"}
"""Headers of a response that every page may read."""


@attrs.frozen
class Answer:
    """What the page's script gets."""

    status: int
    headers: dict[str, str]
    """Those that it may read."""
    text: str
    preflights: int

    @property
    def json(self) -> Any:
        """Its body."""
        return json.loads(self.text)


class FailedToFetchError(Exception):
    """All that a page learns of a response that it may not read."""


def fetch(port: int, path: str, body: bytes | None = None, **headers: str) -> Answer:
    """Send a request as a browser does for a page without an origin, with its preflight where it needs one.

    Raises:
        FailedToFetchError: The server does not let the page read the response.
    """
    named = {name.replace("_", "-").lower(): value for name, value in headers.items()}
    asking = [name for name, value in named.items() if not _is_simple(name, value)]
    method = "GET" if body is None else "POST"
    preflights = 0
    if asking:
        preflights = 1
        asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": ",".join(sorted(asking))}
        leave = _send(port, "OPTIONS", path, None, asked)
        allowed = {name.strip() for name in leave.headers.get("access-control-allow-headers", "").lower().split(",")}
        if not 200 <= leave.status < 300 or not allowed.issuperset(asking):
            raise FailedToFetchError
    got = _send(port, method, path, body, named)
    exposed = {name.strip() for name in got.headers.get("access-control-expose-headers", "").lower().split(",")}
    readable = {name: value for name, value in got.headers.items() if name in exposed | SAFE_HEADERS}
    return Answer(got.status, readable, got.text, preflights)


def _is_simple(name: str, value: str) -> bool:
    return name == "accept" or (name == "content-type" and value.partition(";")[0] in SIMPLE_TYPES)


def _send(port: int, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    mode = {"Origin": "null", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}
    try:
        connection.request(method, path, body, {**mode, **headers})
        response = connection.getresponse()
        named = {name.lower(): value for name, value in response.getheaders()}
        text = response.read().decode()
    finally:
        connection.close()
    if named.get("access-control-allow-origin") not in {"null", "*"}:
        raise FailedToFetchError
    return Answer(response.status, named, text, 0)


def chat(port: int, model: str, content: Any, *, stream: bool = True) -> Answer:
    """Ask as the page does."""
    body = {"model": model, "messages": [{"role": "user", "content": content}], "stream": stream}
    return fetch(port, CHAT, json.dumps(body).encode(), content_type="application/json")


def said(answer: Answer) -> str:
    """Return the text of a stream."""
    lines = [line[6:] for line in answer.text.split("\n") if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def transcribe(port: int, model: str, sound: bytes, **fields: str) -> Answer:
    """Send a recording as the page does."""
    named = {"model": model, "response_format": "json", "temperature": "0", **fields}
    form = encoded_form([("file", ("recording.wav", sound)), *named.items()])
    return fetch(port, TRANSCRIPTIONS, form, content_type=FORM)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Start the program as its documents say for such a page."""
    home = tmp_path_factory.mktemp("home")
    environment = {"HOME": str(home), "MLX_DISABLE_COMPILE": "1"}
    with ServedProgram(home, environment, "--cors-origin", "null", "--image-metadata") as served:
        yield served.port


def test_it_finds_the_server_its_models_and_its_health_by_simple_requests(port: int) -> None:
    models = fetch(port, "/v1/models")
    assert (models.status, models.preflights) == (200, 0)
    windows = {each["id"]: each["context_length"] for each in models.json["data"]}
    assert {"demo", "demo-vision", "demo-speech"} <= windows.keys()
    assert windows["demo"] > 0
    health = fetch(port, "/health")
    assert (health.status, health.preflights, health.json["status"]) == (200, 0, "ok")


def test_a_chat_is_streamed_after_a_preflight_for_its_content_type(port: int) -> None:
    answer = chat(port, "demo", "What is mlxk?")
    assert (answer.status, answer.preflights) == (200, 1)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-request-id"]
    assert "knife for local models" in said(answer)


def test_an_image_is_seen_and_its_table_is_found_by_the_marker(port: int) -> None:
    picture = base64.b64encode((BUILT_IN / "demo-vision" / "blue-square.jpg").read_bytes()).decode()
    parts = [
        {"type": "text", "text": "What color is it?"},
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{picture}"}},
    ]
    table, _, words = said(chat(port, "demo-vision", parts)).partition("</details>")
    assert MARKER == "<!-- mlxk:filenames -->"
    assert MARKER in table
    assert "blue" in words


def test_a_recording_is_heard_without_a_preflight(port: int) -> None:
    answer = transcribe(port, "demo-speech", (BUILT_IN / "demo-speech" / "hello.wav").read_bytes(), language="en")
    assert (answer.status, answer.preflights) == (200, 0)
    assert "hello" in answer.json["text"].lower()


@pytest.mark.parametrize("model", ["demo", "demo-vision"])
def test_a_model_that_does_not_transcribe_says_so_in_the_words_that_lead_it_to_a_chat(model: str, port: int) -> None:
    answer = transcribe(port, model, b"RIFF....WAVE")
    message = answer.json["error"]["message"].lower()
    assert "not a" in message
    assert "transcription" in message
    assert answer.headers["x-request-id"] == answer.json["request_id"]


NO_PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def _answers(request: GenerationRequest) -> tuple[str | MlxkError, ...]:
    return (ExecutionError("it broke"),) if "break" in str(request.prompt) else ("word",)


@pytest.mark.parametrize(
    ("model", "content", "status", "kind", "retryable"),
    [
        (CHAT_MODEL, [{"type": "picture"}], 400, "validation_error", False),
        ("no/such", "Hi", 404, "model_not_found", False),
        ("chat", "Hi", 400, "ambiguous_match", False),
        (CHAT_MODEL, "break", 500, "execution_error", False),
        (EYE, [NO_PICTURE], 400, "validation_error", False),
        (CHAT_MODEL, "x" * 2**20, 413, "payload_too_large", False),
    ],
)
def test_every_error_is_readable_and_has_the_shape_that_it_knows(
    model: str, content: Any, status: int, kind: str, retryable: bool
) -> None:
    parts = Parts(InMemoryTextGenerator(_answers), ServerSettings(cors_origins=("null",)), models={EYE: VISION})
    with RunningServer(parts, ServerLimits(max_body_bytes=2**19)) as server:
        _check(chat(server.port, model, content, stream=False), status, kind, retryable)


def test_too_little_memory_and_a_server_that_ends_are_told() -> None:
    settings = ServerSettings(cors_origins=("null",), strict_memory=True)
    with RunningServer(Parts(settings=settings, budget=1)) as server:
        _check(chat(server.port, CHAT_MODEL, "Hi"), 507, "insufficient_memory", False)
        server.parts.application.drain()
        _check(chat(server.port, CHAT_MODEL, "Hi"), 503, "server_shutdown", True)


def _check(answer: Answer, status: int, kind: str, retryable: bool) -> None:
    body = answer.json
    assert (answer.status, body["status"], body["error"]["type"]) == (status, "error", kind)
    assert body["error"]["retryable"] is retryable
    assert body["error"]["message"]
    assert body["request_id"] == answer.headers["x-request-id"]


def test_it_learns_nothing_where_it_is_not_allowed() -> None:
    with RunningServer(Parts(), ServerLimits(max_body_bytes=2**19)) as server:
        for ask in (
            lambda: fetch(server.port, "/v1/models"),
            lambda: chat(server.port, CHAT_MODEL, "Hi"),
            lambda: transcribe(server.port, CHAT_MODEL, b"x" * 2**20),
        ):
            with pytest.raises(FailedToFetchError):
                ask()


def test_a_key_that_it_does_not_send_is_missed_in_words_that_it_can_show() -> None:
    settings = ServerSettings(cors_origins=("null",), api_keys=("secret",))
    with RunningServer(Parts(settings=settings)) as server:
        _check(fetch(server.port, "/v1/models"), 401, "unauthorized", False)
        assert fetch(server.port, "/v1/models", x_api_key="secret").status == 200
