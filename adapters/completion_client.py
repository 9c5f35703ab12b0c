"""A client of OpenAI's chat completions that measures: a connection for each request, with the standard library.

Proxies are not used: they would be measured, too. A token's time is that of the line it arrives with.
"""

import http.client
import json
import ssl
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import attrs

from mlxk.application.ports.benchmarking import CompletionClient, CompletionServer, RemoteRequest
from mlxk.domain.benchmark import RemoteCompletion
from mlxk.domain.errors import AccessDeniedError, NetworkError

_LONGEST_LINE = 2**20
_LONGEST_REASON = 120
_TOKEN_FIELDS = ("content", "reasoning_content", "reasoning", "tool_calls")
"""Members of a chunk's ``delta`` that hold what the model generated."""


class HttpCompletionClient(CompletionClient):
    """Asks by HTTP/1.1, encrypted or not."""

    def models(self, server: CompletionServer) -> tuple[str, ...]:
        try:
            with _Answer(server, "GET", "/models") as answer:
                if answer.status in (401, 403):
                    raise AccessDeniedError(f"the server wants another key (HTTP {answer.status})")
                if answer.status != http.client.OK:
                    raise NetworkError(f"the server does not list its models: {answer.reason()}")
                document = json.loads(answer.body())
                return tuple(str(each["id"]) for each in document["data"])
        except (OSError, http.client.HTTPException) as error:
            raise NetworkError(f"the server cannot be asked: {_why(error)}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise NetworkError("the server does not list its models in the form of OpenAI's API") from error

    def complete(self, server: CompletionServer, request: RemoteRequest) -> RemoteCompletion:
        began = time.monotonic()
        seen = _Seen()
        try:
            with _Answer(server, "POST", "/chat/completions", _body(request)) as answer:
                seen.status = answer.status
                if answer.status == http.client.OK:
                    for chunk in answer.chunks():
                        seen.take(chunk)
                else:
                    seen.failure = answer.reason()
        except (OSError, http.client.HTTPException) as error:
            seen.failure = _why(error)
        except (ValueError, AttributeError, TypeError):
            seen.failure = "the answer is not a stream of OpenAI's API"
        return seen.completion(began, time.monotonic())


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

    def chunks(self) -> Iterator[dict[str, Any]]:
        """Yield the events of a stream up to its end."""
        while line := self._response.readline(_LONGEST_LINE):
            data = line.strip()
            if data == b"data: [DONE]":
                yield {"done": True}
                return
            if data.startswith(b"data:"):
                yield json.loads(data.removeprefix(b"data:"))


@attrs.define
class _Seen:
    """What was seen of one completion."""

    status: int | None = None
    failure: str | None = None
    first_token: float | None = None
    ended: float | None = None
    """When the last token came; the usage follows it."""
    whole: bool = False
    usage: dict[str, Any] = attrs.field(factory=dict)

    def take(self, chunk: dict[str, Any]) -> None:
        if error := chunk.get("error"):
            said = error.get("message") if isinstance(error, dict) else error
            self.failure = f"error in the stream: {said}"[:_LONGEST_REASON]
        self.whole = self.whole or chunk.get("done") is True
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if any(delta.get(name) for name in _TOKEN_FIELDS):
                self.ended = time.monotonic()
                self.first_token = self.first_token or self.ended
            self.whole = self.whole or choice.get("finish_reason") is not None

    def completion(self, began: float, ended: float) -> RemoteCompletion:
        if self.failure is None and not self.whole:
            self.failure = "the answer was cut off"
        details = self.usage.get("prompt_tokens_details") or {}
        return RemoteCompletion(
            began,
            self.ended if self.ended is not None and self.failure is None else ended,
            self.first_token,
            _count(self.usage.get("prompt_tokens")),
            _count(self.usage.get("completion_tokens")),
            _count(details.get("cached_tokens")) if isinstance(details, dict) else None,
            self.failure,
            self.status,
        )


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _body(request: RemoteRequest) -> bytes:
    body = {
        "model": request.model,
        "messages": [{"role": "user", "content": request.prompt}],
        "max_tokens": request.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return json.dumps(body | ({"ignore_eos": True} if request.ignore_eos else {})).encode()


def _why(error: Exception) -> str:
    """Return why a request failed, in words that are the same for the same reason."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return (getattr(error, "strerror", None) or type(error).__name__)[:_LONGEST_REASON]
