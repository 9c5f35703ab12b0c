"""``POST /api/embed``, and ``POST /api/embeddings`` as it was before: their bodies and resources."""

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
from mlxk.entrypoints.http.ollama.fields import KeepAlive, keep_alive_kind, keep_alive_seconds
from mlxk.entrypoints.http.ollama.loading import ModelLoading
from mlxk.entrypoints.http.ollama.names import ModelFields, ModelNames, NamedModel
from mlxk.entrypoints.http.ollama.renderer import nanoseconds
from mlxk.entrypoints.http.openai.embeddings import INPUTS_TRUNCATED, as_numbers
from mlxk.entrypoints.http.request_scope import Trace, trace_of
from mlxk.entrypoints.http.requests.body import BodyReader
from mlxk.entrypoints.http.requests.validation import FieldError, Neutral, Range, StrictConverter, Unsupported
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
class _EmbeddingFields(ModelFields):
    """What both requests have."""

    options: dict[str, Any] | None = None
    keep_alive: KeepAlive = None

    def faults(self) -> list[FieldError]:
        """Return the faults of combinations of fields."""
        faults = super().faults()
        try:
            keep_alive_seconds(self.keep_alive)
        except ValueError:
            faults.append(FieldError("keep_alive", "must be a number of seconds, or a duration such as 5m or 1h30m"))
        return faults

    @property
    def unloads(self) -> bool:
        """Whether the model is unloaded after the answer."""
        return keep_alive_seconds(self.keep_alive) == 0


@attrs.frozen(kw_only=True)
class EmbedBody(_EmbeddingFields):
    """The body of a request for vectors."""

    input: Inputs = None
    truncate: bool | None = None
    """Whether inputs beyond the context window are cut, which is the default, and reported."""
    dimensions: Annotated[int, Range(1)] | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs."""
        texts = [self.input] if isinstance(self.input, str) else self.input or []
        return tuple(texts) if any(texts) else ()


@attrs.frozen(kw_only=True)
class EmbeddingsBody(_EmbeddingFields):
    """The body of a request for one vector."""

    prompt: str | None = None


class _Embedding:
    """Computes vectors for both resources."""

    def __init__(self, server: ServerContext) -> None:
        self._services = server.services
        self._settings = server.settings
        self._lifecycle = server.lifecycle
        self._limit = server.limit
        self._metrics = server.metrics
        self._names = ModelNames(server.services.catalogue)
        self._loading = ModelLoading(server)

    def find(self, body: _EmbeddingFields) -> NamedModel:
        """Return the model of a request; the operator's, where there is only one for vectors.

        Raises:
            MlxkError: There is none, it computes no vectors, or another server computes them.
        """
        if self._settings.embed_backend is not None:
            raise FeatureGateError(
                "another server computes the vectors, which /api/embed does not pass on",
                hint="Ask /v1/embeddings.",
            )
        if self._settings.embed_model is not None:
            found = self._names.find(ModelFields(model=self._settings.embed_model), require_embedding_model)
            return attrs.evolve(found, name=body.named or found.name)
        return self._names.find(body, require_embedding_model)

    def embed(
        self, trace: Trace, response: falcon.Response, found: NamedModel, inputs: tuple[str, ...], body: EmbedBody
    ) -> EmbeddingResult:
        """Compute the vectors; inputs that had to be cut are reported in a header.

        Raises:
            MlxkError: See ``EmbedText``.
        """
        self._lifecycle.require_open()
        trace.model = found.served.id
        if found.served.description.can(Capability.MULTI_VECTOR):
            raise CapabilityError(
                f"'{found.name}' makes several vectors of a text, for which this API has no form.",
                hint="Ask /v1/embeddings.",
            )
        settings = EmbeddingSettings(dimensions=body.dimensions, truncate=body.truncate is not False)
        release, clock = self._limit.enter(1), self._services.clock
        began = clock.monotonic()
        try:
            result = self._services.embed(found.served.description, inputs, settings)
        finally:
            release()
            seconds = clock.monotonic() - began
            if body.unloads:
                self._loading.unload(found.served)
        trace.tokens = result.embeddings.tokens
        self._metrics.embeddings(found.served.id, "ollama", result.embeddings.tokens, seconds)
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
        found = self._embedding.find(body)
        vectors: list[list[float]] = []
        tokens = 0
        if body.inputs:
            embeddings = self._embedding.embed(trace_of(request), response, found, body.inputs, body).embeddings
            vectors, tokens = [as_numbers(each) for each in embeddings.vectors], embeddings.tokens
        send_json(
            response,
            {
                "model": found.name,
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
        found = self._embedding.find(body)
        vector: list[float] = []
        if body.prompt:
            asked = EmbedBody(keep_alive=body.keep_alive)
            result = self._embedding.embed(trace_of(request), response, found, (body.prompt,), asked)
            vector = as_numbers(result.embeddings.vectors[0])
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
