"""``POST /v1/embeddings``: its body, its resource, and the proxy to another server."""

import http.client
from collections.abc import Callable
from typing import Annotated
from urllib.parse import urlsplit

import attrs
import falcon

from mlxk.application.policy import require_embedding_model
from mlxk.application.use_cases.embed_text import EmbeddingResult
from mlxk.domain.embedding import MAX_INPUTS, EmbeddingSettings, Input, InputKind, Vector, as_base64
from mlxk.domain.errors import NetworkError
from mlxk.entrypoints.http.api import ServerContext
from mlxk.entrypoints.http.requests.body import BodyReader
from mlxk.entrypoints.http.requests.validation import FieldError, OneOf, Range, StrictConverter
from mlxk.entrypoints.http.resources import send_json

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 120.0

MAX_ANSWER_BYTES = 256 * 1024 * 1024

Inputs = str | list[str] | list[int] | list[list[int]]

_NEITHER = "must be a string, an array of strings, or tokens as an array of numbers or of such arrays"


@attrs.frozen(kw_only=True)
class EmbeddingsRequest:
    """The body of a request for embeddings."""

    model: Annotated[str, Range(1, None)]
    input: Inputs
    encoding_format: Annotated[str, OneOf(("float", "base64"))] | None = None
    dimensions: Annotated[int, Range(1, None)] | None = None
    user: str | None = None
    input_type: Annotated[str, OneOf(tuple(kind.value for kind in InputKind))] | None = None
    instruct: str | None = None
    truncate: bool | None = None

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The inputs, each as text or as tokens."""
        if isinstance(self.input, str):
            return (self.input,)
        if all(isinstance(each, int) for each in self.input):
            return (tuple(int(each) for each in self.input if isinstance(each, int)),)
        return tuple(each if isinstance(each, str) else tuple(each) for each in self.input if not isinstance(each, int))

    def faults(self) -> list[FieldError]:
        """Return the faults of combinations of fields."""
        if self.instruct is not None and self.input_type != InputKind.QUERY.value:
            return [FieldError("instruct", "belongs to the input_type query")]
        return []

    def settings(self) -> EmbeddingSettings:
        """Return the embedding settings."""
        return EmbeddingSettings(
            kind=InputKind(self.input_type) if self.input_type else InputKind.DOCUMENT,
            instruction=self.instruct,
            dimensions=self.dimensions,
            truncate=bool(self.truncate),
        )


def register_inputs(converter: StrictConverter) -> None:
    """Register the kinds of input with a converter."""
    converter.union(Inputs, _kind)


def _kind(value: object) -> object:
    if isinstance(value, str):
        return Annotated[str, Range(1, None)]
    if not isinstance(value, list):
        raise TypeError(_NEITHER)
    first = value[0] if value else ""
    if isinstance(first, str):
        return Annotated[list[Annotated[str, Range(1, None)]], Range(1, MAX_INPUTS)]
    if isinstance(first, list):
        return Annotated[list[Annotated[list[int], Range(1, None)]], Range(1, MAX_INPUTS)]
    if isinstance(first, int) and not isinstance(first, bool):
        return Annotated[list[int], Range(1, None)]
    raise TypeError(_NEITHER)


class EmbeddingsResource:
    """Computes embeddings."""

    def __init__(self, server: ServerContext) -> None:
        self._reader = BodyReader(EmbeddingsRequest, (register_inputs,))
        self._services = server.services
        self._lifecycle = server.lifecycle
        self._limit = server.limit
        self._only_model = server.settings.embed_model

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Return one vector for each input."""
        request.context.prompt_field = "input"
        body = self._reader.read(request, response)
        self._lifecycle.require_open()
        model = self._services.catalogue.find(self._only_model or body.model, require_embedding_model)
        release = self._limit.enter(1)
        try:
            result = self._services.embed(model.description, body.inputs, body.settings())
        finally:
            release()
        send_json(response, _document(body, result))


class EmbeddingsProxy:
    """Forwards requests to another server; bodies pass unchanged in both directions.

    Args:
        server: Lifecycle and limits.
        address: URL of the other server, such as ``http://127.0.0.1:8001``; its path is kept.
    """

    def __init__(self, server: ServerContext, address: str) -> None:
        self._address = urlsplit(address)
        self._lifecycle = server.lifecycle
        self._limit = server.limit

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Forward a request."""
        self._lifecycle.require_open()
        release = self._limit.enter(1)
        try:
            status, kind, data = self._forward(
                request.bounded_stream.read(), request.content_type or "application/json"
            )
        except TimeoutError as error:
            raise NetworkError("The embed backend did not answer in time.") from error
        except (OSError, http.client.HTTPException) as error:
            raise NetworkError(f"Embed backend unreachable ({type(error).__name__}).") from error
        finally:
            release()
        response.status = falcon.code_to_http_status(status)
        response.content_type, response.data = kind, data

    def _forward(self, body: bytes, content_type: str) -> tuple[int, str, bytes]:
        secure = self._address.scheme == "https"
        connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = connect(self._address.hostname or "", self._address.port, timeout=CONNECT_SECONDS)
        try:
            connection.connect()
            if connection.sock is not None:
                connection.sock.settimeout(ANSWER_SECONDS)
            path = self._address.path.rstrip("/").removesuffix("/v1")
            connection.request("POST", f"{path}/v1/embeddings", body, {"Content-Type": content_type})
            answer = connection.getresponse()
            data = answer.read(MAX_ANSWER_BYTES + 1)
            if len(data) > MAX_ANSWER_BYTES:
                raise NetworkError("The embed backend's answer is too large.")
            return answer.status, answer.getheader("Content-Type") or "application/json", data
        finally:
            connection.close()


def _document(body: EmbeddingsRequest, result: EmbeddingResult) -> dict[str, object]:
    encode: Callable[[Vector], object] = as_base64 if body.encoding_format == "base64" else _as_numbers
    tokens = result.embeddings.tokens
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": encode(vector)}
            for index, vector in enumerate(result.embeddings.vectors)
        ],
        "model": result.model,
        "system_fingerprint": result.fingerprint,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _as_numbers(vector: Vector) -> list[float]:
    # A 32-bit float has at most nine significant digits.
    return [float(f"{value:.9g}") for value in vector]
