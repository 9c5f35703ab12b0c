"""A client that measures the completions of servers: a connection for each request, with the standard library.

It knows OpenAI's chat completions and Ollama's chat. Proxies are not used: they would be measured, too. A token's time
is that of the line it arrives with.
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
"""How long a server may take to say which one it is."""


class HttpCompletionClient(CompletionClient):
    """Asks by HTTP/1.1, encrypted or not."""

    def identify(self, server: CompletionServer) -> CompletionServer:
        """As the port says.

        Ollama says its version and nothing else. A server that says more there offers its API besides its own, which is
        OpenAI's.
        """
        if server.api is not None:
            return server
        try:
            with _Answer(attrs.evolve(server, timeout_seconds=_QUICK_SECONDS), "GET", "/api/version") as answer:
                found = json.loads(answer.body()) if answer.status == http.client.OK else None
        except (OSError, http.client.HTTPException, ValueError):
            found = None
        is_ollama = isinstance(found, dict) and found.keys() == {"version"}
        return attrs.evolve(server, api="ollama" if is_ollama else "openai")

    def models(self, server: CompletionServer) -> tuple[str, ...]:
        api = _api(server)
        try:
            with _Answer(server, "GET", api.models_path) as answer:
                if answer.status in (401, 403):
                    raise AccessDeniedError(f"the server wants another key (HTTP {answer.status})")
                if answer.status != http.client.OK:
                    raise NetworkError(f"the server does not list its models: {answer.reason()}")
                return tuple(map(str, api.names(json.loads(answer.body()))))
        except (OSError, http.client.HTTPException) as error:
            raise NetworkError(f"the server cannot be asked: {_why(error)}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise NetworkError(f"the server does not list its models in the form of {api.title}") from error

    def complete(self, server: CompletionServer, request: RemoteRequest) -> RemoteCompletion:
        api = _api(server)
        began = time.monotonic()
        seen = _Seen()
        try:
            with _Answer(server, "POST", api.path, json.dumps(api.body(request)).encode()) as answer:
                seen.status = answer.status
                if answer.status == http.client.OK:
                    for event in api.events(answer.lines()):
                        seen.refused(event)
                        api.take(seen, event)
                else:
                    seen.failure = answer.reason()
        except (OSError, http.client.HTTPException) as error:
            seen.failure = _why(error)
        except (ValueError, AttributeError, TypeError):
            seen.failure = f"the answer is not a stream of {api.title}"
        return seen.completion(began, time.monotonic())

    def manages(self, server: CompletionServer) -> bool:
        return _api(server).loading is not None

    def load(self, server: CompletionServer, model: str) -> float | None:
        if _api(server).loading is None:
            return None
        began = time.monotonic()
        self._order(server, model)
        return time.monotonic() - began

    def unload(self, server: CompletionServer, model: str) -> None:
        if _api(server).loading is not None:
            self._order(server, model, keep_alive=0)

    def memory_bytes(self, server: CompletionServer, model: str) -> int | None:
        if (path := _api(server).loaded_path) is None:
            return None
        with _asking(server, "GET", path) as answer:
            found = [each.get("size") for each in json.loads(answer.body())["models"] if _same(each["name"], model)]
            return _count(found[0]) if found else None

    def pull(self, server: CompletionServer, model: str, report: Callable[[int, int], None]) -> None:
        if (path := _api(server).pulling) is None:
            raise NetworkError(f"a server cannot be told by {_api(server).title} to fetch '{model}'")
        layers: dict[str, tuple[int, int]] = {}
        done = False
        with _asking(server, "POST", path, {"model": model}) as answer:
            for line in answer.lines():
                event = json.loads(line)
                if event.get("error"):
                    raise NetworkError(f"the server does not fetch '{model}': {event['error']}"[:_LONGEST_REASON])
                if _count(event.get("total")):
                    layers[event["digest"]] = (_count(event.get("completed")) or 0, event["total"])
                    report(*map(sum, zip(*layers.values(), strict=True)))
                done = done or event.get("status") == "success"
        if not done:
            raise NetworkError(f"the server has not fetched '{model}'", hint="Try it again: what arrived is kept.")

    def _order(self, server: CompletionServer, model: str, **fields: int) -> None:
        """Have a model loaded, or do with it what the fields say."""
        with _asking(server, "POST", _api(server).loading or "", {"model": model, "stream": False, **fields}) as answer:
            answer.body()


def _same(listed: str, model: str) -> bool:
    """Whether a server's name of a model is the one that was given, which may lack the usual tag."""
    return listed in (model, f"{model}:latest")


@contextlib.contextmanager
def _asking(server: CompletionServer, method: str, path: str, body: object = None) -> "Iterator[_Answer]":
    """Ask a server for something other than a completion; every failure is a ``NetworkError``."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with _Answer(server, method, path, data) as answer:
            if answer.status != http.client.OK:
                raise NetworkError(f"the server refuses: {answer.reason()}")
            yield answer
    except (OSError, http.client.HTTPException) as error:
        raise NetworkError(f"the server cannot be asked: {_why(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NetworkError(f"the server does not answer in the form of {_api(server).title}") from error


class _Answer:
    """A request that was sent, and the answer as it arrives."""

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

    def __enter__(self) -> "_Answer":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def body(self) -> bytes:
        return self._response.read(_LONGEST_LINE)

    def reason(self) -> str:
        """Return why there is no answer, in a few words."""
        try:
            error = json.loads(self.body())["error"]
            said = error["message"] if isinstance(error, dict) else error
        except (ValueError, KeyError, TypeError):
            said = self._response.reason
        return f"HTTP {self.status}: {said}"[:_LONGEST_REASON]

    def lines(self) -> Iterator[bytes]:
        """Yield the lines as they arrive, without those that are empty."""
        while line := self._response.readline(_LONGEST_LINE):
            if data := line.strip():
                yield data


@attrs.define
class _Seen:
    """What was seen of one completion."""

    status: int | None = None
    failure: str | None = None
    first_token: float | None = None
    ended: float | None = None
    """When the last token came; what the server says of the whole follows it."""
    whole: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    stated: StatedTimes | None = None
    text: list[str] = attrs.field(factory=list)

    def refused(self, event: dict[str, Any]) -> None:
        """Note the error of an event, if it is one."""
        if error := event.get("error"):
            said = error.get("message") if isinstance(error, dict) else error
            self.failure = f"error in the stream: {said}"[:_LONGEST_REASON]

    def token(self, text: object) -> None:
        """Note that a token has come, and its part of the answer, if it is one."""
        self.ended = time.monotonic()
        if isinstance(text, str):
            self.text.append(text)
        self.first_token = self.first_token or self.ended

    def completion(self, began: float, ended: float) -> RemoteCompletion:
        if self.failure is None and not self.whole:
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
    """How servers of one API are asked, and what they say."""

    title: str
    models_path: str
    names: Callable[[Any], list[Any]]
    """Returns the names of models in the list of them."""
    path: str
    """Where completions are asked for."""
    body: Callable[[RemoteRequest], dict[str, Any]]
    events: Callable[[Iterator[bytes]], Iterator[dict[str, Any]]]
    """Yields the events of the lines of a stream, up to its end."""
    take: Callable[[_Seen, dict[str, Any]], None]
    loading: str | None = None
    """Where models are loaded and unloaded; None where there is no such request. The same of the others."""
    loaded_path: str | None = None
    pulling: str | None = None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


# OpenAI's chat completions

_TOKEN_FIELDS = ("content", "reasoning_content", "reasoning", "tool_calls")
"""Members of a chunk's ``delta`` that hold what the model generated."""


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
        if line == b"data: [DONE]":
            yield {"done": True}
            return
        if line.startswith(b"data:"):
            yield json.loads(line.removeprefix(b"data:"))


def _openai_take(seen: _Seen, event: dict[str, Any]) -> None:
    seen.whole = seen.whole or event.get("done") is True
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        if any(delta.get(name) for name in _TOKEN_FIELDS):
            seen.token(delta.get("content"))
        seen.whole = seen.whole or choice.get("finish_reason") is not None
    if usage := event.get("usage"):
        details = usage.get("prompt_tokens_details") or {}
        seen.prompt_tokens, seen.completion_tokens = (
            _count(usage.get(f"{kind}_tokens")) for kind in ("prompt", "completion")
        )
        seen.cached_tokens = _count(details.get("cached_tokens")) if isinstance(details, dict) else None


# Ollama's chat

_NANOSECOND = 1e-9


def _ollama_body(request: RemoteRequest) -> dict[str, Any]:
    return {
        "model": request.model,
        "messages": [{"role": "user", "content": request.prompt}],
        "stream": True,
        # A prompt that does not fit is an error, and is not cut in silence.
        "truncate": False,
        "shift": False,
        "options": {"temperature": 0, "num_predict": request.max_tokens},
    }


def _ollama_take(seen: _Seen, event: dict[str, Any]) -> None:
    message = event.get("message") or {}
    if any(message.get(name) for name in ("content", "thinking", "tool_calls")):
        seen.token(message.get("content"))
    if event.get("done") is True:
        seen.whole = True
        seen.prompt_tokens, seen.completion_tokens = (
            _count(event.get(name)) for name in ("prompt_eval_count", "eval_count")
        )
        durations = (_count(event.get(f"{kind}_duration")) for kind in ("load", "prompt_eval", "eval"))
        seen.stated = StatedTimes(*(None if each is None else each * _NANOSECOND for each in durations))


_APIS: Mapping[str, _Api] = {
    "openai": _Api(
        "OpenAI's API",
        "/v1/models",
        lambda document: [each["id"] for each in document["data"]],
        "/v1/chat/completions",
        _openai_body,
        _openai_events,
        _openai_take,
    ),
    "ollama": _Api(
        "Ollama's API",
        "/api/tags",
        lambda document: [each["name"] for each in document["models"]],
        "/api/chat",
        _ollama_body,
        lambda lines: map(json.loads, lines),
        _ollama_take,
        loading="/api/generate",
        loaded_path="/api/ps",
        pulling="/api/pull",
    ),
}


def _api(server: CompletionServer) -> _Api:
    return _APIS[server.api or "openai"]


def _why(error: Exception) -> str:
    """Return why a request failed, in words that are the same for the same reason."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return (getattr(error, "strerror", None) or type(error).__name__)[:_LONGEST_REASON]
