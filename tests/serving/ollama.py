"""Requests of Ollama's API: what was answered, line by line or whole, and what reached the engine."""

import functools
import json
from typing import Any

import attrs
from falcon.testing import TestClient
from serving import contract
from serving.parts import CHAT_MODEL, Parts
from serving.running import RunningServer, read_all, unchunked

from mlxk.domain.generation.request import GenerationRequest

MESSAGES = [{"role": "user", "content": "one two three"}]


@attrs.frozen
class Answer:
    """A response, held against the contract."""

    status: int
    body: Any
    """The document; the lines of a stream."""
    headers: dict[str, str]
    reached: GenerationRequest | None = None
    """The first request that reached the engine."""

    @property
    def ignored(self) -> list[str]:
        """The fields that were reported as ignored."""
        return [name for name in self.headers.get("x-mlxk-ignored-fields", "").split(", ") if name]

    @property
    def error(self) -> str:
        """The text of the error, which is all that there is."""
        assert set(self.body) == {"error"}, self.body
        return str(self.body["error"])


@functools.cache
def parts() -> Parts:
    """Return the one application that all requests of a module go to; it takes no harm."""
    return Parts()


def ask(path: str, to: Parts | None = None, method: str = "POST", **fields: Any) -> Answer:
    """Send a request to the application on doubles."""
    application = to or parts()
    application.generator.requests.clear()
    client = TestClient(application.application.wsgi, headers={"Host": "localhost"})
    body = None if method == "GET" else json.dumps(fields)
    response = client.simulate_request(method, path, body=body, headers={"Content-Type": "application/json"})
    headers = {name.lower(): value for name, value in response.headers.items()}
    kind = headers.get("content-type", "").partition(";")[0]
    reached = next(iter(application.generator.requests), None)
    if kind == "application/x-ndjson":
        return Answer(response.status_code, lines_of(path, response.content), headers, reached)
    parsed = response.json if response.content else None
    contract.check(method, path, response.status_code, kind, parsed)
    return Answer(response.status_code, parsed, headers, reached)


def chat(to: Parts | None = None, **fields: Any) -> Answer:
    """Send a conversation that is to be answered in one document."""
    answer = ask("/api/chat", to, **{"model": CHAT_MODEL, "messages": MESSAGES, "stream": False, **fields})
    assert answer.status == 200, answer.body
    return answer


def generate(to: Parts | None = None, **fields: Any) -> Answer:
    """Send a prompt that is to be answered in one document."""
    answer = ask("/api/generate", to, **{"model": CHAT_MODEL, "prompt": "one two three", "stream": False, **fields})
    assert answer.status == 200, answer.body
    return answer


def lines_of(path: str, body: bytes) -> list[Any]:
    """Return the lines of a stream, each held against the contract."""
    assert body.endswith(b"\n")
    lines = [json.loads(each) for each in body.splitlines()]
    for each in lines:
        contract.check_line(path, each)
    return lines


def stream(server: RunningServer, path: str, body: Any) -> list[Any]:
    """Return the lines of a streamed response of a real server."""
    head, _, data = read_all(server.raw(path, body)).partition(b"\r\n\r\n")
    assert b"Content-Type: application/x-ndjson" in head, head + data
    return lines_of(path, unchunked(data) if b"chunked" in head.lower() else data)


def joined(lines: list[Any]) -> dict[str, Any]:
    """Put the lines of a stream together as a client does: the last one has the counts."""
    last: dict[str, Any] = {**lines[-1]}
    parts = [line.get("message", line) for line in lines]
    text = "content" if "message" in last else "response"
    whole: dict[str, Any] = {text: "".join(part.get(text, "") for part in parts)}
    thinking = "".join(part.get("thinking", "") for part in parts)
    calls = [call for part in parts for call in part.get("tool_calls", ())]
    whole |= {"thinking": thinking} if thinking else {}
    whole |= {"tool_calls": calls} if calls else {}
    logprobs = [token for line in lines for token in line.get("logprobs", ())]
    last |= {"message": {"role": "assistant", **whole}} if "message" in last else whole
    return {**last, **({"logprobs": logprobs} if logprobs else {})}
