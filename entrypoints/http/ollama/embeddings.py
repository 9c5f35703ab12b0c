"""``POST /api/embed``, and its predecessor ``POST /api/embeddings``: their bodies and resources."""

from collections.abc import Mapping
from typing import Annotated, Any

import attrs
import falcon

from mlxk.application.policy import require_embedding_model
from mlxk.application.use_cases.model_tasks import EmbeddingResult
from mlxk.domain.embedding import MAX_INPUTS, EmbeddingSettings
from mlxk.domain.errors import CapabilityError, FeatureGateError
from mlxk.domain.models.model import Capability
from mlxk.entrypoints.http.api import ServerContext
from mlxk.entrypoints.http.generation.responder import ADAPTATIONS
from mlxk.entrypoints.http.ollama.fields import KeepAlive, KeepAliveFields, keep_alive_kind
from mlxk.entrypoints.http.ollama.loading import ModelLoading
from mlxk.entrypoints.http.ollama.names import ModelFields, ModelNames, NamedModel
from mlxk.entrypoints.http.ollama.renderer import nanoseconds
from mlxk.entrypoints.http.openai.embeddings import INPUTS_TRUNCATED, as_numbers
from mlxk.entrypoints.http.request_scope import Trace, trace_of
from mlxk.entrypoints.http.requests.body import BodyReader
from mlxk.entrypoints.http.requests.validation import Neutral, Range, StrictConverter, Unsupported
from mlxk.entrypoints.http.resources import send_json

Inputs = str | list[str] | None

NEUTRAL: Neutral = {"keep_alive": ("",)}

WITHOUT_EFFECT: Mapping[str, Unsupported] = {
    "options": Unsupported("nothing is sampled, and the window is the model's", ({},)),
    "keep_alive": Unsupported(
        "only 0 has an effect: the model is unloaded after the answer", (0, 0.0, "0", "0s", "0m")
    ),
}
"""Documented fields that are accepted and reported as ignored."""


@attrs.frozen(kw_only=True)
class _EmbeddingFields(KeepAliveFields):
    """The fields of both requests."""

    options: dict[str, Any] | None = None


@attrs.frozen(kw_only=True)
class EmbedBody(_EmbeddingFields):
    """The body of ``/api/embed``."""

    input: Inputs = None
    truncate: bool | None = None
    """Whether inputs beyond the context window are truncated, and that is reported; absent means yes."""
    dimensions: Annotated[int, Range(1)] | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs; none if all are empty."""
        texts = [self.input] if isinstance(self.input, str) else self.input or []
        return tuple(texts) if any(texts) else ()


@attrs.frozen(kw_only=True)
class EmbeddingsBody(_EmbeddingFields):
    """The body of ``/api/embeddings``."""

    prompt: str | None = None


class _Embedding:
    """Computes embeddings for both resources."""

    def __init__(self, server: ServerContext) -> None:
        self._services = server.services
        self._settings = server.settings
        self._lifecycle = server.lifecycle
        self._limit = server.limit
        self._metrics = server.metrics
        self._names = ModelNames(server.services.catalogue)
        self._loading = ModelLoading(server)

    def find(self, body: _EmbeddingFields) -> NamedModel:
        """Return the model of a request; the operator's embedding model, if one is set.

        Raises:
            MlxkError: There is none, it computes no embeddings, or another server does.
        """
        if self._settings.embed_backend is not None:
            raise FeatureGateError(
                "another server computes the vectors, which /api/embed does not pass on",
                hint="Ask /v1/embeddings.",
            )
        if self._settings.embed_model is not None:
            model = self._names.find(ModelFields(model=self._settings.embed_model), require_embedding_model)
            return attrs.evolve(model, name=body.named or model.name)
        return self._names.find(body, require_embedding_model)

    def unload_if_asked(self, model: NamedModel, body: _EmbeddingFields) -> None:
        """Unload the model once its requests have ended, if the request asks for it with ``keep_alive``."""
        if body.keep_alive_seconds == 0:
            self._loading.unload(model.served)

    def embed(
        self, trace: Trace, response: falcon.Response, model: NamedModel, inputs: tuple[str, ...], body: EmbedBody
    ) -> EmbeddingResult:
        """Compute the embeddings, and report truncated inputs in a header.

        Raises:
            MlxkError: See ``EmbedText``.
        """
        self._lifecycle.require_open()
        trace.model = model.served.id
        if model.served.description.can(Capability.MULTI_VECTOR):
            raise CapabilityError(
                f"'{model.name}' makes several vectors of a text, for which this API has no form.",
                hint="Ask /v1/embeddings.",
            )
        settings = EmbeddingSettings(dimensions=body.dimensions, truncate=body.truncate is not False)
        release, clock = self._limit.enter(1), self._services.clock
        began = clock.monotonic()
        try:
            result = self._services.embed(model.served.description, inputs, settings)
        finally:
            release()
            seconds = clock.monotonic() - began
            self.unload_if_asked(model, body)
        trace.tokens = result.embeddings.tokens
        self._metrics.embeddings(model.served.id, "ollama", result.embeddings.tokens, seconds)
        if result.embeddings.truncations:
            response.set_header(ADAPTATIONS, INPUTS_TRUNCATED)
        return result


class EmbedResource:
    """Computes a vector for each input."""

    def __init__(self, server: ServerContext) -> None:
        self._reader = BodyReader(EmbedBody, (register_embedding,), {}, WITHOUT_EFFECT, neutral=NEUTRAL)
        self._embedding = _Embedding(server)
        self._clock = server.services.clock

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Return the vectors."""
        began = self._clock.monotonic()
        body = self._reader.read(request, response)
        model = self._embedding.find(body)
        vectors: list[list[float]] = []
        tokens = 0
        if body.inputs:
            embeddings = self._embedding.embed(trace_of(request), response, model, body.inputs, body).embeddings
            vectors, tokens = list(map(as_numbers, embeddings.vectors)), embeddings.tokens
        else:
            self._embedding.unload_if_asked(model, body)
        send_json(
            response,
            {
                "model": model.name,
                "embeddings": vectors,
                "total_duration": nanoseconds(self._clock.monotonic() - began),
                "prompt_eval_count": tokens,
            },
        )


class OllamaEmbeddings:
    """Computes one vector."""

    def __init__(self, server: ServerContext) -> None:
        self._reader = BodyReader(EmbeddingsBody, (register_embedding,), {}, WITHOUT_EFFECT, neutral=NEUTRAL)
        self._embedding = _Embedding(server)

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Return the vector."""
        body = self._reader.read(request, response)
        model = self._embedding.find(body)
        vector: list[float] = []
        if body.prompt:
            options = EmbedBody(keep_alive=body.keep_alive)
            result = self._embedding.embed(trace_of(request), response, model, (body.prompt,), options)
            vector = as_numbers(result.embeddings.vectors[0])
        else:
            self._embedding.unload_if_asked(model, body)
        send_json(response, {"embedding": vector})


def register_embedding(converter: StrictConverter) -> None:
    """Register the unions of these classes with a converter."""
    converter.union(Inputs, _inputs_kind)
    converter.union(KeepAlive, keep_alive_kind)


def _inputs_kind(value: object) -> object:
    if isinstance(value, str):
        return str
    if isinstance(value, list):
        return Annotated[list[str], Range(0, MAX_INPUTS)]
    raise TypeError("must be a string or an array of strings")
