"""``POST /v1/embeddings``: its body, its resource, and a proxy for a backend of the operator's."""

import functools
import http.client
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

import attrs
import falcon
import orjson

from mlxk.application.policy import require_embedding_model
from mlxk.application.use_cases.model_tasks import EmbeddingResult
from mlxk.domain.embedding import (
    MAX_INPUTS,
    EmbeddingSettings,
    ImageInput,
    Input,
    InputKind,
    Vector,
    Vectors,
    as_base64,
    as_number,
)
from mlxk.domain.errors import NetworkError
from mlxk.entrypoints.http.api import ServerContext
from mlxk.entrypoints.http.generation.responder import ADAPTATIONS
from mlxk.entrypoints.http.lifecycle import api_of
from mlxk.entrypoints.http.openai.media_items import read_item, read_messages
from mlxk.entrypoints.http.request_scope import trace_of
from mlxk.entrypoints.http.requests.body import BodyReader
from mlxk.entrypoints.http.requests.media import PartReader
from mlxk.entrypoints.http.requests.validation import FieldError, Neutral, OneOf, Range, StrictConverter, Unsupported
from mlxk.entrypoints.http.resources import send_json

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 120.0

MAX_ANSWER_BYTES = 256 * 1024 * 1024

INPUTS_TRUNCATED = "inputs-truncated"
"""Adaptation: inputs were truncated; the body lists them."""

_CODES = re.compile(r"[a-z0-9-]+(, [a-z0-9-]+){0,31}")
"""Values of a backend's ``X-Mlxk-Adaptations`` that are passed on."""

Inputs = str | dict[str, Any] | list[Any] | list[int] | list[list[int]] | None

_NEITHER = "must be a string, an image, an array of these, or tokens as an array of numbers or of such arrays"

_KINDS = {
    "document": InputKind.DOCUMENT,
    "query": InputKind.QUERY,
    "passage": InputKind.DOCUMENT,
    "search_document": InputKind.DOCUMENT,
    "search_query": InputKind.QUERY,
}
"""Values of ``input_type``, including those of NVIDIA's and Cohere's APIs."""

_TASKS = {"retrieval.query": "query", "retrieval.passage": "document"}
"""Values of Jina's ``task`` with the ``input_type`` that they mean."""

_TRUNCATIONS = {"END": True, "NONE": False}
Truncate = bool | str | None
"""Whether to truncate inputs; NVIDIA's and Cohere's APIs use the words of ``_TRUNCATIONS``."""

_FLOATS_ONLY = Unsupported("vectors are 32-bit floats", ("float",))
_UNSUPPORTED = {"output_dtype": _FLOATS_ONLY, "embedding_types": attrs.evolve(_FLOATS_ONLY, neutral=(["float"],))}
_WITHOUT_EFFECT = {"task": Unsupported("the model has no adapters for tasks", tuple(_TASKS))}


@attrs.frozen(kw_only=True)
class EmbeddingsRequest:
    """The body of a request for embeddings."""

    aliases: ClassVar[Mapping[str, str]] = {
        "output_dimension": "dimensions",
        "truncation": "truncate",
        "embedding_type": "encoding_format",
    }
    """Field names of Voyage's and Jina's APIs."""

    model: Annotated[str, Range(1, None)]
    input: Inputs = None
    messages: list[Any] | None = None
    encoding_format: Annotated[str, OneOf(("float", "base64"))] | None = None
    dimensions: Annotated[int, Range(1, None)] | None = None
    user: str | None = None
    input_type: Annotated[str, OneOf(tuple(_KINDS))] | None = None
    instruct: str | None = None
    prompt_name: Annotated[str, Range(1, None)] | None = None
    truncate: Truncate = None
    task: str | None = None
    """Jina's field; used where ``input_type`` is absent."""

    def inputs(self, media: PartReader) -> tuple[Input, ...]:
        """Return the inputs, each as text, token ids or an image.

        Args:
            media: Reads images.

        Raises:
            ValidationError: See ``read_item``.
        """
        if self.messages is not None:
            return (read_messages(self.messages, "messages", media),)
        if isinstance(self.input, str | dict):
            return (read_item(self.input, "input", media),)
        items = self.input or []
        if all(isinstance(item, int) for item in items):
            return (tuple(int(item) for item in items if isinstance(item, int)),)
        return tuple(
            tuple(item) if isinstance(item, list) else read_item(item, f"input[{index}]", media)
            for index, item in enumerate(items)
        )

    @property
    def kind(self) -> InputKind:
        """What the inputs are for."""
        name = self.input_type or (_TASKS.get(self.task or "") if self.prompt_name is None else None)
        return _KINDS[name or InputKind.DOCUMENT.value]

    def faults(self) -> list[FieldError]:
        """Return the faults of combinations of fields."""
        if (self.input is None) == (self.messages is None):
            return [FieldError("input", "is missing" if self.messages is None else "and messages exclude each other")]
        if isinstance(self.truncate, str) and self.truncate.upper() not in _TRUNCATIONS:
            return [FieldError("truncate", "must be true, false, END or NONE: texts are cut at their end")]
        if self.instruct is not None and self.kind is not InputKind.QUERY:
            return [FieldError("instruct", "belongs to the input_type query")]
        if self.prompt_name is not None and self.input_type is not None:
            return [FieldError("prompt_name", "and input_type exclude each other")]
        return []

    def settings(self) -> EmbeddingSettings:
        """Return the embedding settings."""
        return EmbeddingSettings(
            kind=self.kind,
            instruction=self.instruct,
            prompt_name=self.prompt_name,
            dimensions=self.dimensions,
            truncate=_TRUNCATIONS[self.truncate.upper()] if isinstance(self.truncate, str) else bool(self.truncate),
        )


NEUTRAL: Neutral = {"encoding_format": ("",), "input_type": ("",), "instruct": ("",), "prompt_name": ("",)}


def register_inputs(converter: StrictConverter) -> None:
    """Register the unions of these fields with a converter."""
    converter.union(Inputs, _inputs_kind)
    converter.union(Truncate, lambda value: str if isinstance(value, str) else bool)


def _inputs_kind(value: object) -> object:
    if isinstance(value, str):
        return Annotated[str, Range(1, None)]
    if isinstance(value, dict):
        return dict[str, Any]
    if not isinstance(value, list):
        raise TypeError(_NEITHER)
    first = value[0] if value else ""
    if any(isinstance(item, dict) for item in value) and all(isinstance(item, str | dict) for item in value):
        return Annotated[list[Any], Range(1, MAX_INPUTS)]
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
        self._reader = BodyReader(
            EmbeddingsRequest,
            (register_inputs,),
            unsupported=_UNSUPPORTED,
            without_effect=_WITHOUT_EFFECT,
            neutral=NEUTRAL,
            default_model=lambda: server.settings.embed_model or server.services.catalogue.default,
        )
        self._services = server.services
        self._media = server.media
        self._lifecycle = server.lifecycle
        self._limit = server.limit
        self._metrics = server.metrics
        self._only_model = server.settings.embed_model

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Return one vector for each input."""
        request.context.prompt_field = "input"
        body = self._reader.read(request, response)
        self._lifecycle.require_open()
        inputs = body.inputs(self._media.of_request())
        has_images = any(isinstance(item, ImageInput) for item in inputs)
        require = functools.partial(require_embedding_model, images=has_images)
        model = self._services.catalogue.find(self._only_model or body.model, require)
        trace = trace_of(request)
        trace.model = model.id
        release, clock = self._limit.enter(1), self._services.clock
        began = clock.monotonic()
        try:
            result = self._services.embed(model.description, inputs, body.settings())
        finally:
            release()
        seconds = clock.monotonic() - began
        trace.tokens = result.embeddings.tokens
        self._metrics.embeddings(model.id, api_of(request.uri_template), result.embeddings.tokens, seconds)
        if result.embeddings.truncations:
            response.set_header(ADAPTATIONS, INPUTS_TRUNCATED)
        send_json(response, _document(body, result))


class EmbeddingsProxy:
    """Forwards requests to a backend, another server; bodies pass unchanged in both directions.

    Args:
        server: Lifecycle and limits.
        address: URL of the backend, such as ``http://127.0.0.1:8001``; its path is kept.
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
            backend = self._forward(request.bounded_stream.read(), request.content_type or "application/json")
        except TimeoutError as error:
            raise NetworkError("The embed backend did not answer in time.") from error
        except (OSError, http.client.HTTPException) as error:
            raise NetworkError("The embed backend's answer is not HTTP, or was cut off.", hint=_SEE_BACKEND) from error
        finally:
            release()
        response.status = falcon.code_to_http_status(backend.status)
        response.content_type, response.data = "application/json", backend.body
        if backend.retry_after is not None:
            response.set_header("Retry-After", backend.retry_after)
        if backend.adaptations is not None:
            response.set_header(ADAPTATIONS, backend.adaptations)

    def _forward(self, body: bytes, content_type: str) -> "_BackendResponse":
        secure = self._address.scheme == "https"
        connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = connect(self._address.hostname or "", self._address.port, timeout=CONNECT_SECONDS)
        try:
            try:
                connection.connect()
            except TimeoutError as error:
                raise NetworkError("Embed backend unreachable (no answer in time).", hint=_SEE_BACKEND) from error
            except OSError as error:
                raise NetworkError(f"Embed backend unreachable ({_failure_of(error)}).", hint=_SEE_BACKEND) from error
            if connection.sock is not None:
                connection.sock.settimeout(ANSWER_SECONDS)
            path = self._address.path.rstrip("/").removesuffix("/v1")
            connection.request("POST", f"{path}/v1/embeddings", body, {"Content-Type": content_type})
            response = connection.getresponse()
            data = response.read(MAX_ANSWER_BYTES + 1)
            if len(data) > MAX_ANSWER_BYTES:
                raise NetworkError("The embed backend's answer is too large.")
            if response.length:
                raise http.client.IncompleteRead(data, response.length)
            return _checked(response, data)
        finally:
            connection.close()


_SEE_BACKEND = "See whether --embed-backend names an embeddings server."


@attrs.frozen
class _BackendResponse:
    status: int
    body: bytes
    retry_after: str | None
    adaptations: str | None


def _checked(response: http.client.HTTPResponse, body: bytes) -> _BackendResponse:
    """Validate the response of a backend, which clients take for this server's own.

    Raises:
        NetworkError: It is not a JSON object, or its status is neither 200 nor an error.
    """
    status, content_type = response.status, response.getheader("Content-Type") or ""
    if not (status == HTTPStatus.OK or 400 <= status < 600):
        raise NetworkError(f"The embed backend answered with status {status}.", hint=_SEE_BACKEND)
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json" or not _is_json_object(body):
        raise NetworkError(f"The embed backend answered with status {status} and no JSON object.", hint=_SEE_BACKEND)
    retry, codes = (response.getheader("Retry-After") or "").strip(), response.getheader(ADAPTATIONS) or ""
    return _BackendResponse(
        status,
        body,
        retry_after=retry if retry.isdecimal() else None,
        adaptations=codes if _CODES.fullmatch(codes) else None,
    )


def _is_json_object(body: bytes) -> bool:
    try:
        return isinstance(orjson.loads(body), dict)
    except ValueError:
        return False


def _failure_of(error: OSError) -> str:
    """Return why the backend cannot be reached, in words."""
    if isinstance(error, socket.gaierror):
        return "its name is not known"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate is not trusted"
    return error.strerror.lower() if error.strerror else "the connection failed"


def _document(body: EmbeddingsRequest, result: EmbeddingResult) -> dict[str, object]:
    encode: Callable[[Vector], object] = as_base64 if body.encoding_format == "base64" else as_numbers

    def encode_all(item: Vector | Vectors) -> object:
        if not isinstance(item[0], tuple):
            return encode(item)
        return [encode(vector) for vector in item if isinstance(vector, tuple)]

    tokens = result.embeddings.tokens
    truncated = [attrs.asdict(truncation) for truncation in result.embeddings.truncations]
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": encode_all(item)}
            for index, item in enumerate(result.embeddings.results)
        ],
        "model": result.model,
        "system_fingerprint": result.fingerprint,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        **({"truncated": truncated} if truncated else {}),
    }


def as_numbers(vector: Vector) -> list[float]:
    """Return a vector as JSON numbers, each in its shortest exact form."""
    return [as_number(value) for value in vector]
