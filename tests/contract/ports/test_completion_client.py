"""The contract of the client that measures, held by the double and by the adapter, which asks a socket."""

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from doubles.completion_client import InMemoryCompletionClient
from serving.fake_ollama import FakeOllama

from mlxk.adapters.completion_client import HttpCompletionClient
from mlxk.application.ports.measuring import CompletionClient, CompletionServer, RemoteRequest
from mlxk.domain.benchmark import StatedTimes
from mlxk.domain.errors import AccessDeniedError, NetworkError

REQUEST = RemoteRequest("m", "one two three", 4, ignore_eos=True)
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}}


def event(delta: dict[str, Any] | None = None, **fields: Any) -> bytes:
    """Return one event of a stream."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": fields.pop("ends", None)}]
    return b"data: " + json.dumps({"choices": choices, **fields}).encode() + b"\n\n"


WHOLE = (
    event({"role": "assistant", "content": ""}),
    event({"content": "a"}),
    b": keep-alive\n\n",
    event({"reasoning_content": "b"}),
    event({}, ends="length"),
    event(usage=USAGE),
    b"data: [DONE]\n\n",
)


class ScriptedServer(http.server.ThreadingHTTPServer):
    """Answers with what a test has written."""

    status = 200
    body: tuple[bytes, ...] = WHOLE

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, str | None, Any]] = []

    @property
    def address(self) -> CompletionServer:
        return CompletionServer(f"http://127.0.0.1:{self.server_port}", api_key="secret", timeout_seconds=10)


class Handler(http.server.BaseHTTPRequestHandler):
    server: ScriptedServer

    def do_GET(self) -> None:
        self.answer(None)

    def do_POST(self) -> None:
        self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def answer(self, body: Any) -> None:
        self.server.seen.append((self.path, self.headers["Authorization"], body))
        self.send_response(self.server.status)
        self.end_headers()
        for part in self.server.body:
            self.wfile.write(part)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@attrs.frozen
class Asked:
    """A client, a server with the model ``m``, and how that is made to refuse."""

    client: CompletionClient
    server: CompletionServer
    scripted: ScriptedServer | None = None

    def refuse(self) -> None:
        if self.scripted is not None:
            self.scripted.status, self.scripted.body = 503, (b'{"error": {"message": "full"}}',)
        elif isinstance(self.client, InMemoryCompletionClient):
            self.client.status = 503


@pytest.fixture(params=["http", "in_memory"])
def asked(request: pytest.FixtureRequest, scripted: ScriptedServer) -> Asked:
    if request.param == "http":
        return Asked(HttpCompletionClient(), scripted.address, scripted)
    return Asked(InMemoryCompletionClient(("m",)), CompletionServer("http://127.0.0.1"))


class TestCompletionClient:
    def test_an_answer_has_its_times_in_order_and_the_tokens_that_the_server_counts(self, asked: Asked) -> None:
        found = asked.client.complete(asked.server, REQUEST)
        assert (found.failure, found.status) == (None, 200)
        assert (found.prompt_tokens, found.completion_tokens) == (3, 4)
        assert found.first_token is not None
        assert found.began <= found.first_token <= found.ended

    def test_a_server_whose_api_is_named_is_not_asked_for_it(self, asked: Asked) -> None:
        named = attrs.evolve(asked.server, api="ollama")
        assert asked.client.identify(named) == named
        assert asked.client.identify(asked.server).api is not None

    def test_a_refusal_is_a_result_with_its_reason(self, asked: Asked) -> None:
        asked.refuse()
        found = asked.client.complete(asked.server, REQUEST)
        assert (found.status, found.first_token) == (503, None)
        assert found.failure is not None
        assert "503" in found.failure
        with pytest.raises(NetworkError):
            asked.client.models(asked.server)


@pytest.fixture(params=["http", "in_memory"])
def managed(request: pytest.FixtureRequest) -> Iterator[tuple[CompletionClient, CompletionServer]]:
    """Return a client and a server with the model ``m``, which loads and fetches models."""
    if request.param == "in_memory":
        yield InMemoryCompletionClient(("m",)), CompletionServer("http://127.0.0.1")
        return
    with FakeOllama({"m:latest": 10**9}) as server:
        yield HttpCompletionClient(), CompletionServer(server.url, "ollama")


class TestManagedModels:
    def test_a_model_is_loaded_and_unloaded_as_often_as_one_likes(
        self, managed: tuple[CompletionClient, CompletionServer]
    ) -> None:
        client, server = managed
        assert client.manages(server)
        for _ in range(2):
            assert (client.load(server, "m") or 0) > 0
            assert client.memory_bytes(server, "m") == 10**9
        for _ in range(2):
            client.unload(server, "m")
            assert client.memory_bytes(server, "m") is None

    def test_a_model_is_fetched_and_listed_then(self, managed: tuple[CompletionClient, CompletionServer]) -> None:
        client, server = managed
        said: list[tuple[int, int]] = []
        client.pull(server, "other:1b", lambda done, total: said.append((done, total)))
        assert "other:1b" in client.models(server)
        done, total = said[-1]
        assert done == total > 0

    def test_what_is_not_there_is_a_failure(self, managed: tuple[CompletionClient, CompletionServer]) -> None:
        client, server = managed
        with pytest.raises(NetworkError):
            client.load(server, "nosuch")
        with pytest.raises(NetworkError, match="nosuch"):
            client.pull(server, "nosuch", lambda *_: None)


def test_an_api_without_such_requests_manages_nothing(scripted: ScriptedServer) -> None:
    client, server = HttpCompletionClient(), scripted.address
    client.unload(server, "m")
    assert (client.manages(server), client.load(server, "m"), client.memory_bytes(server, "m")) == (False, None, None)
    with pytest.raises(NetworkError, match="cannot be told by OpenAI's API to fetch 'm'"):
        client.pull(server, "m", lambda *_: None)
    assert scripted.seen == []


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"models": [5]}', b"<html>"])
def test_what_is_no_answer_of_ollama_is_a_failure(scripted: ScriptedServer, body: bytes) -> None:
    scripted.body = (body,)
    server = attrs.evolve(scripted.address, api="ollama")
    with pytest.raises(NetworkError, match="in the form of Ollama's API"):
        HttpCompletionClient().memory_bytes(server, "m")
    scripted.body = (b'{"status": "pulling"}\n',)
    with pytest.raises(NetworkError, match="has not fetched 'm'"):
        HttpCompletionClient().pull(server, "m", lambda *_: None)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"error": {}}', b""])
def test_a_refusal_without_a_reason_has_that_of_its_status(scripted: ScriptedServer, body: bytes) -> None:
    scripted.status, scripted.body = 502, (body,)
    found = HttpCompletionClient().complete(scripted.address, REQUEST)
    assert (found.status, found.failure) == (502, "HTTP 502: Bad Gateway")


def test_a_server_that_has_gone_is_told_from_one_that_refuses() -> None:
    server = CompletionServer("http://127.0.0.1:1", api="ollama", timeout_seconds=10)
    with pytest.raises(NetworkError, match=r"^the server cannot be asked: Connection refused$"):
        HttpCompletionClient().memory_bytes(server, "m")


def test_the_request_asks_for_the_usage_and_carries_the_key(scripted: ScriptedServer) -> None:
    HttpCompletionClient().complete(scripted.address, REQUEST)
    ((path, key, body),) = scripted.seen
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert body["stream_options"] == {"include_usage": True}
    assert (body["model"], body["max_tokens"], body["ignore_eos"]) == ("m", 4, True)
    HttpCompletionClient().complete(scripted.address, attrs.evolve(REQUEST, ignore_eos=False))
    assert "ignore_eos" not in scripted.seen[1][2]


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        (WHOLE[:3], "the answer was cut off"),
        ((event(error={"message": "out of memory"}),), "error in the stream: out of memory"),
        ((b"data: {]\n\n",), "the answer is not a stream of OpenAI's API"),
        ((b"data: [1]\n\n",), "the answer is not a stream of OpenAI's API"),
        ((b"<html>",), "the answer was cut off"),
    ],
)
def test_an_answer_that_is_not_whole_is_a_failure(
    scripted: ScriptedServer, body: tuple[bytes, ...], failure: str
) -> None:
    scripted.body = body
    assert HttpCompletionClient().complete(scripted.address, REQUEST).failure == failure


def test_the_blank_after_the_colon_of_an_event_may_be_missing(scripted: ScriptedServer) -> None:
    scripted.body = tuple(part.replace(b"data: ", b"data:") for part in WHOLE)
    found = HttpCompletionClient().complete(scripted.address, REQUEST)
    assert (found.failure, found.completion_tokens) == (None, 4)


def test_tokens_are_never_counted_from_the_text(scripted: ScriptedServer) -> None:
    scripted.body = tuple(each for each in WHOLE if b"usage" not in each)
    found = HttpCompletionClient().complete(scripted.address, REQUEST)
    assert (found.failure, found.prompt_tokens, found.completion_tokens) == (None, None, None)
    assert found.inter_token_seconds is None


def test_models_are_listed_and_what_is_no_list_is_refused(scripted: ScriptedServer) -> None:
    client = HttpCompletionClient()
    scripted.body = (b'{"data": [{"id": "b"}, {"id": "a"}]}',)
    assert client.models(scripted.address) == ("b", "a")
    scripted.body = (b'{"models": []}',)
    with pytest.raises(NetworkError, match="in the form of OpenAI's API"):
        client.models(scripted.address)
    scripted.status = 401
    with pytest.raises(AccessDeniedError, match="another key"):
        client.models(scripted.address)
    with pytest.raises(NetworkError, match="cannot be asked"):
        client.models(CompletionServer("http://127.0.0.1:1"))


def line(text: str, **fields: Any) -> bytes:
    """Return one line of a stream of Ollama's API."""
    return json.dumps({"message": {"role": "assistant", "content": text}, "done": False, **fields}).encode() + b"\n"


END = line("", done=True, prompt_eval_count=3, eval_count=4, load_duration=10**9, eval_duration=2 * 10**9)


def test_an_answer_of_ollama_has_its_counts_and_its_own_times(scripted: ScriptedServer) -> None:
    scripted.body = (line(""), line("a"), line("", message={"role": "assistant", "content": "", "thinking": "b"}), END)
    found = HttpCompletionClient().complete(attrs.evolve(scripted.address, api="ollama"), REQUEST)
    assert (found.failure, found.prompt_tokens, found.completion_tokens, found.cached_tokens) == (None, 3, 4, None)
    assert found.stated == StatedTimes(1.0, None, 2.0)
    assert found.first_token is not None
    ((path, key, body),) = scripted.seen
    assert (path, key) == ("/api/chat", "Bearer secret")
    assert (body["options"], body["truncate"]) == ({"temperature": 0, "num_predict": 4}, False)


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        ((line("a"),), "the answer was cut off"),
        ((line("a"), b'{"error": "out of memory"}\n'), "error in the stream: out of memory"),
        ((b"data: {}\n",), "the answer is not a stream of Ollama's API"),
        ((b"[]\n",), "the answer is not a stream of Ollama's API"),
        ((b'{"message": "text"}\n',), "the answer is not a stream of Ollama's API"),
    ],
)
def test_an_answer_of_ollama_that_is_not_whole_is_a_failure(
    scripted: ScriptedServer, body: tuple[bytes, ...], failure: str
) -> None:
    scripted.body = body
    assert HttpCompletionClient().complete(attrs.evolve(scripted.address, api="ollama"), REQUEST).failure == failure


@pytest.mark.parametrize(
    ("said", "api"),
    [
        (b'{"version": "0.12.3"}', "ollama"),
        (b'{"version": "0.32.0", "mlxk": "0.1.0"}', "openai"),
        (b"<html>", "openai"),
        (b"[]", "openai"),
    ],
)
def test_a_server_says_by_its_version_which_one_it_is(scripted: ScriptedServer, said: bytes, api: str) -> None:
    scripted.body = (said,)
    client = HttpCompletionClient()
    assert client.identify(scripted.address).api == api
    scripted.status = 404
    assert client.identify(scripted.address).api == "openai"
    assert client.identify(CompletionServer("http://127.0.0.1:1")).api == "openai"
    named = attrs.evolve(scripted.address, api="ollama")
    assert client.identify(named) == named
