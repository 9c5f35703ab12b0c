"""Ollama's part of the OpenAPI document: of one mind with the program, and kept by answers to anything at all."""

import json
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from falcon.testing import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import contract
from serving.ollama import lines_of
from serving.parts import BASE_MODEL, CHAT_MODEL, EMBEDDING_MODEL, Parts

from mlxk.entrypoints.http.ollama import generate, pull
from mlxk.entrypoints.http.ollama.chat import ChatBody, ChatMessage
from mlxk.entrypoints.http.ollama.embeddings import EmbedBody, EmbeddingsBody
from mlxk.entrypoints.http.ollama.fields import Options
from mlxk.entrypoints.http.ollama.models import ShowBody
from mlxk.entrypoints.http.ollama.names import ModelFields
from mlxk.entrypoints.settings import ServerSettings

REQUESTS: list[tuple[str, type[Any], Any]] = [
    ("OllamaChatRequest", ChatBody, {}),
    ("OllamaMessage", ChatMessage, {}),
    ("OllamaOptions", Options, {}),
    ("OllamaGenerateRequest", generate.GenerateBody, generate.UNSUPPORTED),
    ("OllamaEmbedRequest", EmbedBody, {}),
    ("OllamaEmbeddingsRequest", EmbeddingsBody, {}),
    ("OllamaShowRequest", ShowBody, {}),
    ("OllamaPullRequest", pull.PullBody, pull.UNSUPPORTED),
    ("OllamaDeleteRequest", ModelFields, {}),
]
PATHS = {
    "/api/chat": ChatBody,
    "/api/generate": generate.GenerateBody,
    "/api/embed": EmbedBody,
    "/api/embeddings": EmbeddingsBody,
    "/api/show": ShowBody,
    "/api/pull": pull.PullBody,
    "/api/create": ModelFields,
}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """Return a client of an application whose models clients may change."""
    parts = Parts(settings=ServerSettings(allow_model_changes=True))
    yield TestClient(parts.application.wsgi, headers={"Host": "localhost", "Content-Type": "application/json"})
    parts.close()


@pytest.mark.parametrize(("name", "kind", "unsupported"), REQUESTS)
def test_a_request_has_the_fields_the_program_reads(name: str, kind: type[Any], unsupported: Any) -> None:
    described = contract.document()["components"]["schemas"][name]
    assert set(described["properties"]) == {field.name for field in attrs.fields(kind)} | set(unsupported)
    required = {field.name for field in attrs.fields(kind) if field.default is attrs.NOTHING}
    assert set(described["required"]) == required
    for field, rule in unsupported.items():
        assert described["properties"][field]["enum"] == [*rule.neutral, None]
    assert all("description" in rule for rule in described["properties"].values())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
OPTIONS = sorted(field.name for field in attrs.fields(Options))
MESSAGE = sorted(field.name for field in attrs.fields(ChatMessage))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from([CHAT_MODEL, BASE_MODEL, EMBEDDING_MODEL, "chat", "no/such", "", "/etc", "a@b", "a:b"]),
    "messages": st.lists(st.dictionaries(st.sampled_from(MESSAGE), JSON, max_size=4), max_size=3),
    "options": st.dictionaries(st.sampled_from(OPTIONS), JSON, max_size=3),
    "keep_alive": st.sampled_from(["5m", "x", -1, 0, 1e300, "1e5h", "9" * 70]),
    "stream": st.booleans(),
}


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_whatever_is_sent_the_answer_keeps_the_contract(client: TestClient, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(PATHS)))
    names = sorted(field.name for field in attrs.fields(PATHS[path]))
    body: dict[str, Any] = {
        "model": EMBEDDING_MODEL if "embed" in path else CHAT_MODEL,
        "messages": [{"role": "user", "content": "hi"}],
        "prompt": "hi",
        "input": "hi",
    }
    for name in data.draw(st.lists(st.sampled_from(names), max_size=4)):
        body[name] = data.draw(VALUES.get(name, JSON) | JSON)
    hold(path, client.simulate_post(path, body=json.dumps(body)))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200), st.sampled_from(sorted(PATHS)))
def test_no_body_makes_the_server_fail(client: TestClient, body: bytes, path: str) -> None:
    hold(path, client.simulate_post(path, body=body))


def hold(path: str, answer: Any) -> None:
    """Hold an answer against the contract."""
    assert answer.status_code < 500
    kind = answer.headers["content-type"].partition(";")[0]
    if kind == "application/x-ndjson":
        lines = lines_of(path, answer.content)
        assert lines[-1].get("done") or "error" in lines[-1] or lines[-1] == {"status": "success"}
    else:
        contract.check("POST", path, answer.status_code, kind, answer.json)
