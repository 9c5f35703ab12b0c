"""A client that measures chat completions of servers, OpenAI's API and Ollama's: one connection per request.

Proxies are not used, since they would be measured as well. A token's time is the arrival of the line that has it.
"""

import contextlib
import http.client
import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import attrs

from mlxk.application.ports.measuring import CompletionClient, CompletionServer, RemoteRequest
from mlxk.domain.benchmark import RemoteCompletion, StatedTimes
from mlxk.domain.errors import AccessDeniedError, NetworkError

_LONGEST_LINE = 2**20
_LONGEST_REASON = 120
_QUICK_SECONDS = 5.0
"""Timeout of finding out a server's API."""


class HttpCompletionClient(CompletionClient):
    """Sends HTTP/1.1 requests, with or without TLS."""

    def identify(self, server: CompletionServer) -> CompletionServer:
        """Return the server with its API.

        Ollama answers ``/api/version`` with its version alone. A server with further members only emulates Ollama's API
        and is asked by OpenAI's.
        """
        if server.api is not None:
            return server
        try:
            with _Response(attrs.evolve(server, timeout_seconds=_QUICK_SECONDS), "GET", "/api/version") as response:
                document = json.loads(response.body()) if response.status == http.client.OK else None
        except (OSError, http.client.HTTPException, ValueError):
            document = None
        is_ollama = isinstance(document, dict) and document.keys() == {"version"}
        return attrs.evolve(server, api="ollama" if is_ollama else "openai")

    def models(self, server: CompletionServer) -> tuple[str, ...]:
        api = _api(server)
        try:
            with _Response(server, "GET", api.models_path) as response:
                if response.status in (401, 403):
                    raise AccessDeniedError(f"the server wants another key (HTTP {response.status})")
                if response.status != http.client.OK:
                    raise NetworkError(f"the server does not list its models: {response.reason()}")
                return tuple(map(str, api.names(json.loads(response.body()))))
        except (OSError, http.client.HTTPException) as error:
            raise NetworkError(f"the server cannot be asked: {_why(error)}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise NetworkError(f"the server does not list its models in the form of {api.title}") from error

    def complete(self, server: CompletionServer, request: RemoteRequest) -> RemoteCompletion:
        api = _api(server)
        began = time.monotonic()
        measured = _Measurement()
        try:
            with _Response(server, "POST", api.path, json.dumps(api.body(request)).encode()) as response:
                measured.status = response.status
                if response.status == http.client.OK:
                    for event in api.events(response.lines()):
                        measured.note_error(event)
                        api.measure(measured, event)
                else:
                    measured.failure = response.reason()
        except (OSError, http.client.HTTPException) as error:
            measured.failure = _why(error)
        except (ValueError, AttributeError, TypeError):
            measured.failure = f"the answer is not a stream of {api.title}"
        return measured.completion(began, time.monotonic())

    def manages(self, server: CompletionServer) -> bool:
        return _api(server).load_path is not None

    def load(self, server: CompletionServer, model: str) -> float | None:
        if _api(server).load_path is None:
            return None
        began = time.monotonic()
        self._request_load(server, model)
        return time.monotonic() - began

    def unload(self, server: CompletionServer, model: str) -> None:
        if _api(server).load_path is not None:
            self._request_load(server, model, keep_alive=0)

    def memory_bytes(self, server: CompletionServer, model: str) -> int | None:
        if (path := _api(server).loaded_path) is None:
            return None
        with _request(server, "GET", path) as response:
            models = json.loads(response.body())["models"]
            sizes = [each.get("size") for each in models if _is_name_of(each["name"], model)]
            return _count(sizes[0]) if sizes else None

    def pull(self, server: CompletionServer, model: str, report: Callable[[int, int], None]) -> None:
        if (path := _api(server).pull_path) is None:
            raise NetworkError(f"a server cannot be told by {_api(server).title} to fetch '{model}'")
        layers: dict[str, tuple[int, int]] = {}
        done = False
        with _request(server, "POST", path, {"model": model}) as response:
            for line in response.lines():
                event = json.loads(line)
                if event.get("error"):
                    raise NetworkError(f"the server does not fetch '{model}': {event['error']}"[:_LONGEST_REASON])
                if _count(event.get("total")):
                    layers[event["digest"]] = (_count(event.get("completed")) or 0, event["total"])
                    report(*map(sum, zip(*layers.values(), strict=True)))
                done = done or event.get("status") == "success"
        if not done:
            raise NetworkError(f"the server has not fetched '{model}'", hint="Try it again: what arrived is kept.")

    def _request_load(self, server: CompletionServer, model: str, **fields: int) -> None:
        """Have a model loaded; ``keep_alive=0`` unloads it."""
        body = {"model": model, "stream": False, **fields}
        with _request(server, "POST", _api(server).load_path or "", body) as response:
            response.body()


def _is_name_of(listed: str, model: str) -> bool:
    """Whether a listed name is that of a model, which may lack the default tag."""
    return listed in (model, f"{model}:latest")


@contextlib.contextmanager
def _request(server: CompletionServer, method: str, path: str, body: object = None) -> "Iterator[_Response]":
    """Send a request other than for a completion; every failure is a ``NetworkError``."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with _Response(server, method, path, data) as response:
            if response.status != http.client.OK:
                raise NetworkError(f"the server refuses: {response.reason()}")
            yield response
    except (OSError, http.client.HTTPException) as error:
        raise NetworkError(f"the server cannot be asked: {_why(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NetworkError(f"the server does not answer in the form of {_api(server).title}") from error


class _Response:
    """The response to a request, which the constructor sends; read as it arrives."""

    def __init__(self, server: CompletionServer, method: str, path: str, body: bytes | None = None) -> None:
        address = urlsplit(server.url)
        host, port, timeout = address.hostname or "", address.port, server.timeout_seconds
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if server.api_key is not None:
            headers["Authorization"] = f"Bearer {server.api_key}"
        self._connection = (
            http.client.HTTPSConnection(host, port, timeout=timeout, context=ssl.create_default_context())
            if address.scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=timeout)
        )
        try:
            self._connection.request(method, address.path + path, body, headers)
            self._response = self._connection.getresponse()
        except BaseException:
            self._connection.close()
            raise
        self.status = self._response.status

    def __enter__(self) -> "_Response":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def body(self) -> bytes:
        return self._response.read(_LONGEST_LINE)

    def reason(self) -> str:
        """Return status and message of an error response."""
        try:
            error = json.loads(self.body())["error"]
            message = error["message"] if isinstance(error, dict) else error
        except (ValueError, KeyError, TypeError):
            message = self._response.reason
        return f"HTTP {self.status}: {message}"[:_LONGEST_REASON]

    def lines(self) -> Iterator[bytes]:
        """Yield the non-empty lines as they arrive, stripped."""
        while line := self._response.readline(_LONGEST_LINE):
            if data := line.strip():
                yield data


@attrs.define
class _Measurement:
    """What was measured of one completion so far."""

    status: int | None = None
    failure: str | None = None
    first_token: float | None = None
    ended: float | None = None
    """Time of the last token; usage and timings arrive after it."""
    complete: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    stated: StatedTimes | None = None
    text: list[str] = attrs.field(factory=list)

    def note_error(self, event: dict[str, Any]) -> None:
        """Record the failure if the event is an error."""
        if error := event.get("error"):
            message = error.get("message") if isinstance(error, dict) else error
            self.failure = f"error in the stream: {message}"[:_LONGEST_REASON]

    def note_token(self, text: object) -> None:
        """Record the arrival of a token, and its text unless it is reasoning or a tool call."""
        self.ended = time.monotonic()
        if isinstance(text, str):
            self.text.append(text)
        self.first_token = self.first_token or self.ended

    def completion(self, began: float, ended: float) -> RemoteCompletion:
        if self.failure is None and not self.complete:
            self.failure = "the answer was cut off"
        return RemoteCompletion(
            began,
            self.ended if self.ended is not None and self.failure is None else ended,
            self.first_token,
            self.prompt_tokens,
            self.completion_tokens,
            self.cached_tokens,
            self.failure,
            self.status,
            self.stated,
            "".join(self.text),
        )


@attrs.frozen
class _Api:
    """Paths, requests and responses of one API."""

    title: str
    models_path: str
    names: Callable[[Any], list[Any]]
    """Returns the names in the document of ``models_path``."""
    path: str
    """Of completions."""
    body: Callable[[RemoteRequest], dict[str, Any]]
    events: Callable[[Iterator[bytes]], Iterator[dict[str, Any]]]
    """Yields the events in the lines of a stream, up to its end."""
    measure: Callable[[_Measurement, dict[str, Any]], None]
    """Records an event."""
    load_path: str | None = None
    """Loads and unloads models. None, here and below: the API has no such request."""
    loaded_path: str | None = None
    pull_path: str | None = None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


# OpenAI's chat completions

_TOKEN_FIELDS = ("content", "reasoning_content", "reasoning", "tool_calls")
"""Members of a chunk's ``delta`` with generated tokens."""


def _openai_body(request: RemoteRequest) -> dict[str, Any]:
    body = {
        "model": request.model,
        "messages": [{"role": "user", "content": request.prompt}],
        "max_tokens": request.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return body | ({"ignore_eos": True} if request.ignore_eos else {})


def _openai_events(lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith(b"data:"):
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                yield {"done": True}
                return
            yield json.loads(data)


def _measure_openai(measured: _Measurement, event: dict[str, Any]) -> None:
    measured.complete = measured.complete or event.get("done") is True
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        if any(delta.get(name) for name in _TOKEN_FIELDS):
            measured.note_token(delta.get("content"))
        measured.complete = measured.complete or choice.get("finish_reason") is not None
    if usage := event.get("usage"):
        details = usage.get("prompt_tokens_details") or {}
        measured.prompt_tokens, measured.completion_tokens = (
            _count(usage.get(f"{kind}_tokens")) for kind in ("prompt", "completion")
        )
        measured.cached_tokens = _count(details.get("cached_tokens")) if isinstance(details, dict) else None


# Ollama's chat

_NANOSECOND = 1e-9


def _ollama_body(request: RemoteRequest) -> dict[str, Any]:
    return {
        "model": request.model,
        "messages": [{"role": "user", "content": request.prompt}],
        "stream": True,
        # A prompt beyond the context length is an error instead of being truncated.
        "truncate": False,
        "shift": False,
        "options": {"temperature": 0, "num_predict": request.max_tokens},
    }


def _measure_ollama(measured: _Measurement, event: dict[str, Any]) -> None:
    message = event.get("message") or {}
    if any(message.get(name) for name in ("content", "thinking", "tool_calls")):
        measured.note_token(message.get("content"))
    if event.get("done") is True:
        measured.complete = True
        measured.prompt_tokens, measured.completion_tokens = (
            _count(event.get(name)) for name in ("prompt_eval_count", "eval_count")
        )
        durations = (_count(event.get(f"{kind}_duration")) for kind in ("load", "prompt_eval", "eval"))
        measured.stated = StatedTimes(*(None if each is None else each * _NANOSECOND for each in durations))


_APIS: Mapping[str, _Api] = {
    "openai": _Api(
        "OpenAI's API",
        "/v1/models",
        lambda document: [each["id"] for each in document["data"]],
        "/v1/chat/completions",
        _openai_body,
        _openai_events,
        _measure_openai,
    ),
    "ollama": _Api(
        "Ollama's API",
        "/api/tags",
        lambda document: [each["name"] for each in document["models"]],
        "/api/chat",
        _ollama_body,
        lambda lines: map(json.loads, lines),
        _measure_ollama,
        load_path="/api/generate",
        loaded_path="/api/ps",
        pull_path="/api/pull",
    ),
}


def _api(server: CompletionServer) -> _Api:
    return _APIS[server.api or "openai"]


def _why(error: Exception) -> str:
    """Return why a request failed; equal failures have equal texts, so that they can be counted."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return (getattr(error, "strerror", None) or type(error).__name__)[:_LONGEST_REASON]
