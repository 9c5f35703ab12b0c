"""What a collector of OpenTelemetry is sent of the requests to each API."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from models.tiny_embedding import build_bert
from models.tiny_rerankers import build_cross_encoder
from serving.forms import post_form
from serving.otlp_sink import OtlpSink, values_of
from serving.running import RunningServer, eventually
from serving.whole_program import ENDLESS, PATH, WholeProgram

from mlxk import __version__
from mlxk.entrypoints.settings import ServerSettings

pytestmark = pytest.mark.mlx
SOUND = Path(__file__).parents[2] / "tests" / "sounds" / "hello.flac"
SECRET = "What is mlxk? xylophone"
MESSAGES = [{"role": "user", "content": SECRET}]
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=abc"}
TEXTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "chat": ("/v1/chat/completions", {"messages": MESSAGES, "n": 2, "max_completion_tokens": 4}, "chat demo"),
    "chat stream": ("/chat/completions", {"messages": MESSAGES, "stream": True, "max_tokens": 4}, "chat demo"),
    "completions": ("/v1/completions", {"prompt": SECRET, "max_tokens": 4}, "text_completion demo"),
    "responses": ("/v1/responses", {"input": SECRET, "max_output_tokens": 4}, "chat demo"),
    "messages": ("/v1/messages", {"messages": MESSAGES, "max_tokens": 4}, "chat demo"),
    "ollama chat": ("/api/chat", {"messages": MESSAGES, "options": {"num_predict": 4}}, "chat demo"),
    "ollama generate": (
        "/api/generate",
        {"prompt": SECRET, "stream": False, "options": {"num_predict": 4}},
        "text_completion demo",
    ),
}
"""Requests for four tokens: path, body, and the name of the span."""
Answered = tuple[list[Any], OtlpSink]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a home directory with a model for vectors and one for the order of documents."""
    home = tmp_path_factory.mktemp("home")
    build_bert(home / "models" / "vectors")
    build_cross_encoder(home / "models" / "order", "bert")
    return home


@pytest.fixture
def serve(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Return a function that serves, and gives back what a collector got once the server has stopped."""
    with OtlpSink() as sink:

        def run(ask: Callable[[RunningServer], None], otlp: bool = True, **variables: str) -> Answered:
            for name, value in {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.url, **variables}.items():
                monkeypatch.setenv(name, value)
            known = {"MLXK_WORKSPACE_HOME": str(home / "models"), **variables}
            program: Any = WholeProgram(home, ServerSettings(otlp=otlp), **known)
            with RunningServer(program) as server:
                ask(server)
            return sink.spans, sink

        yield run


def bucketless(sink: OtlpSink, name: str) -> dict[str, tuple[int, Mapping[str, Any]]]:
    """Return the count and the labels of a histogram, by operation."""
    points = sink.metrics[name].histogram.data_points
    found = [(point.count, values_of(point.attributes)) for point in points]
    return {labels["gen_ai.operation.name"]: (count, labels) for count, labels in found}


def test_every_api_for_text_has_its_span(serve: Callable[..., Answered]) -> None:
    answers: dict[str, Any] = {}

    def ask(server: RunningServer) -> None:
        for api, (path, body, _) in TEXTS.items():
            sent = {"model": "demo", **body}
            if not path.startswith("/api/"):
                sent["temperature"] = 0.25
            status, headers, answers[api] = server.post(path, sent, **PARENT, **{"X-Request-ID": api.replace(" ", "-")})
            assert status == 200, answers[api]
            assert headers["x-request-id"] == api.replace(" ", "-")

    spans, sink = serve(ask)
    assert len(spans) == len(TEXTS)
    by_api = {str(values_of(span.attributes)["mlxk.request_id"]): span for span in spans}
    for api, (path, body, name) in TEXTS.items():
        span, answers_to_it = by_api[api.replace(" ", "-")], body.get("n", 1)
        said = values_of(span.attributes)
        assert (span.name, span.kind) == (name, span.SPAN_KIND_SERVER)
        assert (span.trace_id.hex(), span.parent_span_id.hex(), span.trace_state) == (TRACE, SPAN, "vendor=abc")
        assert said["gen_ai.operation.name"] == name.split()[0]
        assert said["gen_ai.provider.name"] == "mlxk"
        assert said["gen_ai.request.model"] == said["gen_ai.response.model"] == "demo"
        assert said["gen_ai.request.max_tokens"] == 4
        assert said.get("gen_ai.request.temperature") == (None if path.startswith("/api/") else 0.25)
        assert said.get("gen_ai.request.choice.count") == body.get("n")
        assert said["gen_ai.usage.output_tokens"] == 4 * answers_to_it
        assert said["gen_ai.response.finish_reasons"] == ["length"] * answers_to_it
        assert "error.type" not in said
        assert said["mlxk.api"] == ("ollama" if path.startswith("/api/") else api.split()[0])
        assert [event.name for event in span.events] == ["queue_end", "first_token"]
        moments = [span.start_time_unix_nano, *(event.time_unix_nano for event in span.events), span.end_time_unix_nano]
        assert moments == sorted(moments)
    said = values_of(by_api["chat"].attributes)
    usage = answers["chat"]["usage"]
    assert said["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert said["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    for name in ("request.duration", "time_to_first_token", "time_per_output_token"):
        counts = bucketless(sink, f"gen_ai.server.{name}")
        assert {operation: count for operation, (count, _) in counts.items()} == {"chat": 5, "text_completion": 2}
        assert counts["chat"][1]["gen_ai.response.model"] == "demo"


def test_no_text_of_prompts_and_answers_is_sent(serve: Callable[..., Answered]) -> None:
    answers: list[bytes] = []

    def ask(server: RunningServer) -> None:
        for path, body, _ in TEXTS.values():
            extra = {"user": "ada-lovelace", "metadata": {"note": "private-note"}} if path == "/v1/responses" else {}
            secret = {"Authorization": "Bearer sk-not-for-others"}
            answers.append(str(server.post(path, {"model": "demo", **body, **extra}, **secret)[2]).encode())
        assert server.post("/v1/embeddings", {"model": "vectors", "input": SECRET})[0] == 200

    spans, sink = serve(ask)
    assert len(spans) == len(TEXTS) + 1
    assert all(b"text" in answer or b"content" in answer or b"response" in answer for answer in answers)
    everything = b"".join(sink.bodies)
    for text in ("xylophone", "What is", "ada-lovelace", "private-note", "sk-not-for-others", "Bearer"):
        assert text.encode() not in everything


def test_vectors_orders_and_recordings_have_their_spans(serve: Callable[..., Answered]) -> None:
    form: list[Any] = [("model", "demo-speech"), ("file", ("hello.flac", SOUND.read_bytes()))]

    def ask(server: RunningServer) -> None:
        assert server.post("/v1/embeddings", {"model": "vectors", "input": "Hello!"}, **PARENT)[0] == 200
        assert server.post("/api/embed", {"model": "vectors", "input": "Hello!"})[0] == 200
        assert server.post("/api/embeddings", {"model": "vectors", "prompt": "Hello!"})[0] == 200
        for path in ("/v1/rerank", "/rerank"):
            assert server.post(path, {"model": "order", "query": "Hello!", "documents": ["Hi!"]})[0] == 200
        for extra in ([], [("stream", "true"), ("temperature", "0.5")]):
            assert post_form(server, "/v1/audio/transcriptions", form + extra)[0] == 200

    spans, sink = serve(ask)
    names = ["embeddings vectors"] * 3 + ["rerank order"] * 2 + ["transcription demo-speech"] * 2
    assert [span.name for span in spans] == names
    assert spans[0].trace_id.hex() == TRACE
    assert len({span.trace_id for span in spans}) == len(spans)
    said = [values_of(span.attributes) for span in spans]
    assert all(each["gen_ai.usage.input_tokens"] > 0 for each in said[:5])
    assert all(each["gen_ai.response.model"] == each["gen_ai.request.model"] for each in said)
    assert [each.get("gen_ai.request.temperature") for each in said[5:]] == [None, 0.5]
    assert [each["mlxk.api"] for each in said] == [*("embeddings", "ollama", "ollama"), *["rerank"] * 2, *["audio"] * 2]
    assert not any("gen_ai.usage.output_tokens" in each for each in said)
    assert set(bucketless(sink, "gen_ai.server.request.duration")) == {"embeddings", "rerank", "transcription"}
    assert "gen_ai.server.time_to_first_token" not in sink.metrics


def test_what_fails_has_the_code_of_its_error(serve: Callable[..., Answered]) -> None:
    requests: list[tuple[str, dict[str, Any], int, str, str]] = [
        ("/v1/chat/completions", {"model": "nobody", "messages": MESSAGES}, 404, "model_not_found", "chat nobody"),
        ("/v1/chat/completions", {"model": "demo", "messages": 3}, 400, "validation_error", "chat demo"),
        ("/v1/embeddings", {"model": "demo", "input": "a"}, 422, "capability_not_supported", "embeddings demo"),
        ("/v1/messages", {"model": "demo", "messages": [], "max_tokens": 1}, 400, "validation_error", "chat demo"),
    ]

    def ask(server: RunningServer) -> None:
        for path, body, expected, *_ in requests:
            assert server.post(path, body)[0] == expected
        assert server.request("POST", "/v1/completions", b"{")[0] == 400
        for path in ("/v1/models", "/health", "/metrics", "/v1/chat/completions"):
            server.get(path)
        server.post("/v1/messages/count_tokens", {"model": "demo", "messages": MESSAGES})

    spans, sink = serve(ask)
    expected = [(name, code) for *_, code, name in requests] + [("text_completion", "validation_error")]
    assert [(span.name, values_of(span.attributes)["error.type"]) for span in spans] == expected
    assert all(span.status.code == span.status.STATUS_CODE_ERROR and not span.status.message for span in spans)
    labels = [
        values_of(point.attributes) for point in sink.metrics["gen_ai.server.request.duration"].histogram.data_points
    ]
    assert all("nobody" not in str(each) for each in labels)


def test_a_stream_whose_client_has_gone_is_recorded_as_cancelled(serve: Callable[..., Answered]) -> None:
    def ask(server: RunningServer) -> None:
        data = json.dumps({**ENDLESS, "stream": True}).encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with server.connect() as connection:
            connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            received = b""
            while received.count(b"data:") < 5:
                received += connection.recv(4096)
        program: Any = server.parts
        assert eventually(lambda: program.running() == 0)

    spans, _ = serve(ask)
    said = values_of(spans[0].attributes)
    assert (len(spans), said["gen_ai.response.finish_reasons"]) == (1, ["cancelled"])
    assert 0 < said["gen_ai.usage.output_tokens"] < 1900
    assert "error.type" not in said


def test_values_that_no_span_can_hold_do_not_lose_it(serve: Callable[..., Answered]) -> None:
    odd = {"seed": 2**64, "temperature": 1e400, "top_k": True, "model": "x" * 1000}

    def ask(server: RunningServer) -> None:
        server.post("/v1/chat/completions", {"messages": MESSAGES, **{**odd, "temperature": "hot"}})
        for header in ("00-0-0-01", "\u00e9", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", ""):
            asked = {"model": "demo", "max_tokens": 1, "messages": MESSAGES}
            assert server.post("/v1/chat/completions", asked, traceparent=header, tracestate="=,=")[0] == 200

    spans, _ = serve(ask)
    assert len(spans) == 5
    said = values_of(spans[0].attributes)
    assert said["gen_ai.request.model"] == "x" * 256
    assert not said.keys() & {"gen_ai.request.seed", "gen_ai.request.top_k", "gen_ai.request.temperature"}
    assert all(not span.parent_span_id for span in spans)


def test_the_standard_variables_count(serve: Callable[..., Answered]) -> None:
    def ask(server: RunningServer) -> None:
        assert server.post("/v1/completions", {"model": "demo", "prompt": "a", "max_tokens": 1})[0] == 200

    _, sink = serve(ask)
    assert sink.resources[-1]["service.name"] == "mlxk"
    assert sink.resources[-1]["service.version"] == __version__
    variables = {
        "OTEL_SERVICE_NAME": "my-mac",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=lab",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=a1",
    }
    _, sink = serve(ask, **variables)
    assert sink.resources[-1]["service.name"] == "my-mac"
    assert sink.resources[-1]["deployment.environment"] == "lab"
    assert "a1" in {headers.get("x-tenant") or headers.get("X-Tenant") for headers in sink.headers}
    before = len(sink.spans)
    serve(ask, OTEL_TRACES_SAMPLER="always_off")
    assert len(sink.spans) == before


def test_what_a_variable_or_the_parent_leaves_out_is_not_sent(serve: Callable[..., Answered]) -> None:
    body = {"model": "demo", "prompt": "a", "max_tokens": 1}

    def ask(server: RunningServer) -> None:
        assert server.post("/v1/completions", body)[0] == 200
        unsampled = {"traceparent": f"00-{TRACE}-{SPAN}-00"}
        assert server.post("/v1/completions", body, **unsampled)[0] == 200

    spans, sink = serve(ask, OTEL_METRICS_EXPORTER="none")
    assert (len(spans), sink.metrics) == (1, {})
    spans, sink = serve(ask, OTEL_METRICS_EXPORTER="otlp", OTEL_TRACES_EXPORTER="none")
    assert (len(spans), len(sink.metrics)) == (1, 2)
    received = len(sink.bodies)
    serve(ask, OTEL_SDK_DISABLED="true", OTEL_TRACES_EXPORTER="otlp")
    assert len(sink.bodies) == received


def test_variables_alone_send_nothing(serve: Callable[..., Answered]) -> None:
    def ask(server: RunningServer) -> None:
        assert server.post("/v1/completions", {"model": "demo", "prompt": "a", "max_tokens": 1})[0] == 200

    _, sink = serve(ask, otlp=False, OTEL_TRACES_EXPORTER="otlp", OTEL_BSP_SCHEDULE_DELAY="1")
    assert sink.bodies == []
