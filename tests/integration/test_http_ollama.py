"""Ollama's API over sockets: names, streams, errors of every kind in its shape, models that come and go."""

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from doubles.text_generator import InMemoryTextGenerator, Token
from serving import contract
from serving.ollama import MESSAGES, joined, stream
from serving.parts import BASE_MODEL, BROKEN_MODEL, CHAT, CHAT_MODEL, EMBEDDING_MODEL, OTHER_MODEL, SPEECH_MODEL, Parts
from serving.running import RunningServer, eventually, read_all

from mlxk.domain.errors import ExecutionError
from mlxk.domain.generation.request import GenerationRequest
from mlxk.entrypoints.http.ollama.api import VERSION
from mlxk.entrypoints.settings import ServerSettings

CHAT_BODY = {"model": CHAT_MODEL, "messages": MESSAGES}
GENERATE_BODY = {"model": CHAT_MODEL, "prompt": "one two three"}
QUANTIZED = ("mlx-community/Qwen3-4B-4bit", "mlx-community/Qwen3-4B-8bit", "mlx-community/Qwen3-4B-4bit-DWQ")


@pytest.fixture(scope="module")
def served() -> Iterator[RunningServer]:
    """Serve models on doubles, with models of one family beside the usual ones."""
    with RunningServer(Parts(models=dict.fromkeys(QUANTIZED, CHAT))) as running:
        yield running


def server(tokens: Sequence[Token], step_seconds: float = 0.0, **settings: Any) -> RunningServer:
    """Return a server whose model says what it is told."""

    def answer(request: GenerationRequest) -> Sequence[Token]:
        return tokens

    generator = InMemoryTextGenerator(answer, step_seconds)
    return RunningServer(Parts(generator, ServerSettings(**settings), keep_alive_seconds=0.05))


def error_of(response: tuple[int, dict[str, str], Any]) -> tuple[int, str]:
    """Return status and text of an error, which is all that there is."""
    status, headers, body = response
    assert headers["content-type"] == "application/json"
    assert list(body) == ["error"], body
    return status, body["error"]


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_a_response_is_streamed_unless_the_request_says_not(served: RunningServer, path: str) -> None:
    body = CHAT_BODY if path == "/api/chat" else GENERATE_BODY
    absent, asked = stream(served, path, body), stream(served, path, {**body, "stream": True})
    status, headers, whole = served.post(path, {**body, "stream": False})
    assert (status, headers["content-type"]) == (200, "application/json; charset=utf-8")
    for lines in (absent, asked):
        assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
        assert without_times(joined(lines)) == without_times(whole)
    text = whole["message"]["content"] if path == "/api/chat" else whole["response"]
    assert text == "one two three"
    assert (whole["prompt_eval_count"], whole["eval_count"], whole["done_reason"]) == (3, 3, "stop")


def without_times(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document without what differs from one answer to the next."""
    return {name: value for name, value in document.items() if not name.endswith(("_duration", "_at"))}


def test_stop_strings_and_limits_end_an_answer(served: RunningServer) -> None:
    for options, text, reason in (({"stop": [" three"]}, "one two", "stop"), ({"num_predict": 1}, "one", "length")):
        for streams in (True, False):
            body = {**CHAT_BODY, "options": options, "stream": streams}
            whole = joined(stream(served, "/api/chat", body)) if streams else served.post("/api/chat", body)[2]
            assert (whole["message"]["content"], whole["done_reason"]) == (text, reason)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (CHAT_MODEL, CHAT_MODEL),
        (f"{CHAT_MODEL}:latest", CHAT_MODEL),
        ("ORG/Chat-Model:Latest", CHAT_MODEL),
        ("chat-model", CHAT_MODEL),
        (f"hf.co/{CHAT_MODEL}", CHAT_MODEL),
        (f"{CHAT_MODEL}:{'a' * 40}", CHAT_MODEL),
        (f"{CHAT_MODEL}:aaaa", CHAT_MODEL),
        ("MLX-Community/qwen3-4b-4bit", "mlx-community/Qwen3-4B-4bit"),
        ("qwen3-4b-4bit:latest", "mlx-community/Qwen3-4B-4bit"),
        ("qwen3-4b:8bit", "mlx-community/Qwen3-4B-8bit"),
        ("qwen3-4b:4bit", "mlx-community/Qwen3-4B-4bit"),
        ("qwen3:8bit", "mlx-community/Qwen3-4B-8bit"),
    ],
)
def test_a_name_may_have_a_tag_and_any_case_of_letters(served: RunningServer, name: str, found: str) -> None:
    for field in ("model", "name"):
        served.parts.generator.requests.clear()
        body = {field: name, "messages": MESSAGES, "stream": False}
        assert served.post("/api/chat", body)[2]["model"] == name
        assert served.parts.generator.requests[0].model.name == found
        assert served.post("/api/show", {field: name})[2]["modelfile"] == f"FROM {found}\n"


@pytest.mark.parametrize(
    "name", ["nope", "nope:latest", "qwen3:4bit", f"{CHAT_MODEL}:v9", f"{CHAT_MODEL}@bbbb", "a:b:c"]
)
def test_a_name_that_nothing_has_is_not_found_in_ollamas_words(served: RunningServer, name: str) -> None:
    for path, body in (("/api/chat", {"messages": MESSAGES}), ("/api/generate", {"prompt": "x"}), ("/api/show", {})):
        assert error_of(served.post(path, {"model": name, **body})) == (404, f"model '{name}' not found")


def test_a_name_of_several_models_lists_them(served: RunningServer) -> None:
    status, text = error_of(served.post("/api/show", {"model": "qwen3"}))
    assert status == 400
    assert all(name in text for name in QUANTIZED)


def test_listed_names_have_a_tag_and_are_found_again(served: RunningServer) -> None:
    _, _, tags = served.get("/api/tags")
    names = [each["name"] for each in tags["models"]]
    assert {f"{CHAT_MODEL}:latest", f"{EMBEDDING_MODEL}:latest", f"{SPEECH_MODEL}:latest"} <= set(names)
    assert f"{BROKEN_MODEL}:latest" not in names
    assert len({each["digest"] for each in tags["models"]}) == len(names)
    for each in tags["models"]:
        shown = served.post("/api/show", {"model": each["model"]})[2]
        assert (shown["details"], shown["capabilities"]) == (each["details"], each["capabilities"])
    assert served.request("HEAD", "/api/tags")[0] == 200


def test_a_description_has_what_clients_decide_by(served: RunningServer) -> None:
    shown = served.post("/api/show", {"model": CHAT_MODEL, "verbose": True, "foo": 1})
    assert shown[1]["x-mlxk-ignored-fields"] == "verbose, foo"
    assert shown[2]["capabilities"] == ["completion", "tools", "thinking"]
    assert shown[2]["parameters"] == "num_ctx 2048"
    assert shown[2]["template"] == CHAT["chat_template.jinja"].decode()
    assert shown[2]["model_info"]["llama.context_length"] == 2048
    assert shown[2]["details"]["quantization_level"] == "4bit"
    kinds = {BASE_MODEL: ["completion"], EMBEDDING_MODEL: ["embedding"], SPEECH_MODEL: ["audio"]}
    assert {name: served.post("/api/show", {"name": name})[2]["capabilities"] for name in kinds} == kinds


def test_a_model_with_tokens_for_a_suffix_says_so() -> None:
    marks = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
    config = {"added_tokens_decoder": {str(index): {"content": mark} for index, mark in enumerate(marks)}}
    coder = {**CHAT, "tokenizer_config.json": json.dumps(config).encode()}
    with RunningServer(Parts(models={"org/coder": coder})) as it:
        shown = it.post("/api/show", {"model": "coder"})[2]
    assert "insert" in shown["capabilities"]
    assert ".Suffix" in shown["template"]


def test_the_version_is_one_that_clients_compare(served: RunningServer) -> None:
    status, _, body = served.get("/api/version")
    assert (status, body["version"]) == (200, VERSION)
    assert [int(part) for part in body["version"].split(".")]


def test_requests_without_content_load_and_unload() -> None:
    with server(()) as it:
        for path, empty in (("/api/chat", {"messages": []}), ("/api/generate", {"prompt": ""}), ("/api/chat", {})):
            loaded = it.post(path, {"model": OTHER_MODEL, **empty, "keep_alive": "90s"})[2]
            assert (loaded["done"], loaded["done_reason"], loaded["model"]) == (True, "load", OTHER_MODEL)
            [running] = it.get("/api/ps")[2]["models"]
            assert running["name"] == f"{OTHER_MODEL}:latest"
            left = datetime.fromisoformat(running["expires_at"]) - datetime.now(UTC)
            assert timedelta(seconds=60) < left <= timedelta(seconds=90)
            unloaded = it.post(path, {"model": OTHER_MODEL, **empty, "keep_alive": 0})[2]
            assert (unloaded["done"], unloaded["done_reason"]) == (True, "unload")
            assert it.get("/api/ps")[2] == {"models": []}


def test_a_model_that_stays_has_a_date_far_away_and_one_that_is_not_loaded_is_not_loaded_to_be_unloaded() -> None:
    with server(()) as it:
        assert it.post("/api/generate", {"model": OTHER_MODEL, "keep_alive": 0})[2]["done_reason"] == "unload"
        for keep_alive in (-1, "-1s", 1e300):
            it.post("/api/generate", {"model": CHAT_MODEL, "keep_alive": keep_alive})
            [running] = it.get("/api/ps")[2]["models"]
            assert datetime.fromisoformat(running["expires_at"]).year > 2200
        assert running["context_length"] == 2048


def test_a_model_of_another_kind_is_not_loaded_by_a_prompt_but_can_be_unloaded(served: RunningServer) -> None:
    assert "does not generate text" in error_of(served.post("/api/generate", {"model": SPEECH_MODEL}))[1]
    assert served.post("/api/generate", {"model": SPEECH_MODEL, "keep_alive": 0})[2]["done_reason"] == "unload"


def test_silence_is_filled_with_lines_that_clients_can_read() -> None:
    with server(("a",), step_seconds=0.3) as it:
        lines = stream(it, "/api/chat", CHAT_BODY)
    assert len([line for line in lines if line.get("message", {}).get("content") == ""]) > 3
    assert joined(lines)["message"]["content"] == "a"


def test_an_error_in_a_stream_is_a_line_and_an_error_in_a_whole_response_a_status() -> None:
    with server(("a", ExecutionError("it failed"))) as it:
        for path, body in (("/api/chat", CHAT_BODY), ("/api/generate", GENERATE_BODY)):
            lines = stream(it, path, body)
            assert lines[-1] == {"error": "it failed"}
            assert not any(line.get("done") for line in lines)
            assert error_of(it.post(path, {**body, "stream": False})) == (500, "it failed")


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_a_disconnect_cancels_the_generation(path: str, streams: bool) -> None:
    body = CHAT_BODY if path == "/api/chat" else GENERATE_BODY
    with server((" word",) * 100_000, step_seconds=0.002) as it:
        connection = it.raw(path, {**body, "stream": streams})
        assert eventually(lambda: it.parts.generator.state(0.1).running == 1)
        connection.close()
        assert eventually(lambda: it.parts.generator.state(0.1).running == 0)


def test_a_full_queue_is_refused_in_the_shape_of_the_api() -> None:
    with server((" word",) * 100_000, step_seconds=0.002, max_streams=1, max_queue=0) as it:
        first = it.raw("/api/chat", CHAT_BODY)
        assert eventually(lambda: it.parts.generator.state(0.1).running == 1)
        for path, body in (("/api/chat", CHAT_BODY), ("/api/generate", {"model": OTHER_MODEL})):
            assert error_of(it.post(path, body))[0] == 429
        first.close()


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", "/api/chat", None, JSON, 400),
        ("POST", "/api/chat", b"{", JSON, 400),
        ("POST", "/api/generate", b"[]", JSON, 400),
        ("POST", "/api/chat", b'{"model": "\\ud800"}', JSON, 400),
        ("POST", "/api/embed", b"{}", {"Content-Type": "image/png"}, 415),
        ("POST", "/api/chat", gzip.compress(b"{}", mtime=0)[:9], {**JSON, "Content-Encoding": "gzip"}, 400),
        ("POST", "/api/chat", b"x" * 2_000_000, JSON, 413),
        ("POST", "/api/chat", b"[" * 100, JSON, 400),
        ("GET", "/api/nothing", None, {}, 404),
        ("POST", "/api/me", b"{}", JSON, 404),
        ("GET", "/api/chat", None, {}, 405),
        ("DELETE", "/api/tags", None, {}, 405),
        ("POST", "/api/chat", b"{}", {"Origin": "https://evil.example"}, 403),
        ("GET", "/api/version", None, {"Host": "evil.example"}, 403),
        ("POST", "/api/create", b"{}", JSON, 400),
        ("POST", "/api/copy", b"{}", JSON, 400),
        ("POST", "/api/push", b"{}", JSON, 400),
        ("POST", "/api/blobs/sha256:ab", b"{}", JSON, 400),
        ("POST", "/api/pull", b"{}", JSON, 403),
        ("DELETE", "/api/delete", b"{}", JSON, 403),
    ],
)
def test_every_error_below_the_path_has_the_shape_of_the_api(
    method: str, path: str, body: bytes | None, headers: dict[str, str], status: int
) -> None:
    with RunningServer(Parts(settings=ServerSettings(max_body_mib=1))) as it:
        assert error_of(it.request(method, path, body, headers))[0] == status


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (f"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {2**40}\r\n\r\n", 413),
        ("POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (f"GET /api/tags HTTP/1.1\r\nHost: localhost\r\nX: {'x' * 300_000}\r\n\r\n", 431),
    ],
)
def test_what_is_refused_before_it_is_read_has_the_shape_of_the_api_too(
    served: RunningServer, head: str, status: int
) -> None:
    for path, in_ollamas_shape in (("/api/", True), ("/v1/", False)):
        connection = served.connect()
        connection.sendall(head.replace("/api/", path).encode())
        first, _, body = read_all(connection).partition(b"\r\n\r\n")
        assert int(first.split()[1]) == status
        assert (list(json.loads(body)) == ["error"]) == (in_ollamas_shape and status != 431)


def test_a_key_is_asked_for_in_the_shape_of_the_api_and_taken() -> None:
    with RunningServer(Parts(settings=ServerSettings(api_keys=("secret",)))) as it:
        assert error_of(it.get("/api/tags"))[0] == 401
        assert it.get("/api/tags", Authorization="Bearer secret")[0] == 200


@pytest.mark.parametrize(("word", "what"), [("create", "create"), ("copy", "copy"), ("push", "push")])
def test_what_is_not_supported_is_refused_by_name(served: RunningServer, word: str, what: str) -> None:
    assert error_of(served.post(f"/api/{word}", {"model": "x"}))[1].startswith(f"{what} is not supported")


def test_other_paths_keep_their_shape(served: RunningServer) -> None:
    assert served.post("/v1/chat/completions", {})[2]["error"]["code"] == "validation_error"
    assert served.get("/apis/nothing")[2]["error"]["code"] == "not_found"


def test_a_model_of_the_operator_answers_requests_without_a_name() -> None:
    parts = Parts()
    parts.catalogue.offer(OTHER_MODEL)
    with RunningServer(parts) as it:
        assert it.post("/api/chat", {"messages": MESSAGES, "stream": False})[2]["model"] == OTHER_MODEL


def test_aliases_and_the_model_for_unknown_names_answer_and_a_tag_that_means_a_model_goes_first() -> None:
    parts = Parts(models=dict.fromkeys(QUANTIZED, CHAT))
    parts.catalogue.add_alias("gpt-4o-mini", OTHER_MODEL)
    parts.catalogue.set_fallback(CHAT_MODEL)
    expected = {
        "gpt-4o-mini": ("gpt-4o-mini", OTHER_MODEL),
        "gpt-4o-mini:latest": ("gpt-4o-mini:latest", OTHER_MODEL),
        "llama3.2:3b": (CHAT_MODEL, CHAT_MODEL),
        "llama3.2": (CHAT_MODEL, CHAT_MODEL),
        "qwen3-4b:8bit": ("qwen3-4b:8bit", QUANTIZED[1]),
    }
    with RunningServer(parts) as it:
        for name, (shown, found) in expected.items():
            parts.generator.requests.clear()
            body = it.post("/api/chat", {"model": name, "messages": MESSAGES, "stream": False})[2]
            assert (body["model"], parts.generator.requests[0].model.name) == (shown, found)
            assert it.post("/api/generate", {"model": name})[2]["model"] == shown
        assert "gpt-4o-mini:latest" in [each["name"] for each in it.get("/api/tags")[2]["models"]]


def test_curl_sends_json_as_a_form() -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    with RunningServer(Parts()) as it:
        body = json.dumps({**CHAT_BODY, "stream": False}).encode()
        assert it.request("POST", "/api/chat", body, form)[0] == 200


def test_vectors_come_for_one_text_or_several(served: RunningServer) -> None:
    for given, count in (("a", 1), (["a", "b"], 2), ([], 0), ("", 0)):
        status, _, body = served.post("/api/embed", {"model": f"{EMBEDDING_MODEL}:latest", "input": given})
        assert (status, len(body["embeddings"]), body["model"]) == (200, count, f"{EMBEDDING_MODEL}:latest")
    vector = served.post("/api/embed", {"model": EMBEDDING_MODEL, "input": "a"})[2]["embeddings"][0]
    assert served.post("/api/embeddings", {"model": EMBEDDING_MODEL, "prompt": "a"})[2] == {"embedding": vector}
    assert served.post("/api/embeddings", {"model": EMBEDDING_MODEL})[2] == {"embedding": []}
    asked = {"model": EMBEDDING_MODEL, "input": "a", "options": {"num_ctx": 1}, "keep_alive": "5m"}
    assert served.post("/api/embed", asked)[1]["x-mlxk-ignored-fields"] == "options, keep_alive"


def test_vectors_of_another_server_are_not_passed_on() -> None:
    with RunningServer(Parts(settings=ServerSettings(embed_backend="http://127.0.0.1:9"))) as it:
        status, text = error_of(it.post("/api/embed", {"model": EMBEDDING_MODEL, "input": "a"}))
    assert (status, text) == (
        403,
        "another server computes the vectors, which /api/embed does not pass on. Ask /v1/embeddings.",
    )


def test_the_model_of_all_vectors_is_the_operators() -> None:
    with RunningServer(Parts(settings=ServerSettings(embed_model=EMBEDDING_MODEL))) as it:
        body = it.post("/api/embed", {"model": "nomic-embed-text", "input": "a"})[2]
    assert (body["model"], len(body["embeddings"])) == ("nomic-embed-text", 1)


IMPORTS = """
import json, os, sys
from falcon.testing import TestClient
from mlxk.entrypoints.container import build
from mlxk.entrypoints.http.app import Application
from mlxk.entrypoints.http.process.worker import services_of
from mlxk.entrypoints.settings import ServerSettings, read_settings
container = build(read_settings(dict(os.environ)), ServerSettings())
application = Application(services_of(container), ServerSettings())
before = set(sys.modules)
client = TestClient(application.wsgi, headers={"Host": "localhost"})
names = [each["name"] for each in client.simulate_get("/api/tags").json["models"]]
client.simulate_post("/api/show", json={"model": names[0]})
print(json.dumps([names, sorted({name.partition(".")[0] for name in set(sys.modules) - before})]))
application.close()
container.adapters.text_generator().close()
"""


def test_listing_and_describing_import_no_library_of_models(
    program_environment: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        capture_output=True,
        text=True,
        env=program_environment,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names, imported = json.loads(done.stdout)
    assert "demo:latest" in names
    assert not {"mlx_lm", "mlx_vlm", "mlx_audio", "transformers", "tokenizers", "torch", "huggingface_hub"} & set(
        imported
    )


def test_a_stream_that_ends_is_closed_as_http_closes_it(served: RunningServer) -> None:
    response = read_all(served.raw("/api/chat", CHAT_BODY))
    assert response.endswith(b"0\r\n\r\n")
    assert contract.document()["paths"]["/api/chat"]
