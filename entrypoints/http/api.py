"""The interface between an HTTP API and the server: the API's resources, and the services that they call.

An API is a function from ``ServerContext`` to ``HttpApi``, listed in ``app.APIS``.
"""

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import falcon

from mlxk.application.named_media import NamedMedia
from mlxk.application.ports.media import AudioDecoder, SoundEncoder
from mlxk.application.ports.system import Clock, EventLog
from mlxk.application.ports.telemetry import Telemetry
from mlxk.application.ports.text_generator import TextGenerator
from mlxk.application.use_cases.generate_text import GenerateText
from mlxk.application.use_cases.model_tasks import (
    EmbedText,
    LoadModel,
    RerankDocuments,
    SpeakText,
    TokenizeText,
    TranscribeAudio,
)
from mlxk.application.use_cases.pull_model import PullModel
from mlxk.application.use_cases.remove_models import RemoveModel
from mlxk.application.use_cases.serve_catalogue import ServeCatalogue
from mlxk.domain.models.model import ServedModel
from mlxk.entrypoints.http.errors import ErrorBody
from mlxk.entrypoints.http.generation.responder import GenerationResponder
from mlxk.entrypoints.http.lifecycle import ConcurrencyLimit, Metrics, ServerLifecycle
from mlxk.entrypoints.http.page import ChatPage
from mlxk.entrypoints.http.request_scope import Tracer
from mlxk.entrypoints.http.requests.media import MediaReader
from mlxk.entrypoints.settings import ServerSettings


@attrs.frozen
class Services:
    """Use cases and ports that the resources call."""

    catalogue: ServeCatalogue
    generate: GenerateText
    load: LoadModel
    audio_decoder: AudioDecoder
    named_media: NamedMedia
    transcribe: TranscribeAudio
    speak: SpeakText
    sound_encoder: SoundEncoder
    embed: EmbedText
    rerank: RerankDocuments
    tokenize: TokenizeText
    pull: Callable[[], PullModel]
    """Builds the use case on demand: it loads the hub's client, and few servers pull."""
    remove: Callable[[], RemoveModel]
    generator: TextGenerator
    clock: Clock
    log: EventLog
    telemetry: Telemetry


@attrs.frozen
class ServerContext:
    """The services and settings from which an API is built."""

    services: Services
    settings: ServerSettings
    lifecycle: ServerLifecycle
    limit: ConcurrencyLimit
    metrics: Metrics
    tracer: Tracer
    responder: GenerationResponder
    page: ChatPage | None = None
    """The chat page; None where the server has none."""

    @property
    def media(self) -> MediaReader:
        """The reader of media in messages."""
        return MediaReader(self.services.audio_decoder, self.services.named_media, self.services.clock)

    def settings_for(self, model: ServedModel) -> ServerSettings:
        """Return the settings for requests to a model: those of its profile, else those of the server."""
        profile = self.services.generate.profile_of(model.handle)
        start, end = profile.thinking_tags or (None, None)
        values: dict[str, Any] = {
            "max_tokens": profile.settings.max_tokens,
            "thinking_budget": profile.settings.thinking_budget,
            "enable_thinking": profile.thinking,
            "thinking_start_token": start,
            "thinking_end_token": end,
        }
        return attrs.evolve(self.settings, **{name: value for name, value in values.items() if value is not None})


def _claims_nothing(_: falcon.Request) -> bool:
    return False


@attrs.frozen
class HttpApi:
    """Resources that share one format of errors."""

    resources: Mapping[str, object]
    """Falcon resources by path template."""
    error_body: ErrorBody
    """Renders the errors of these paths."""
    body_limits: Mapping[str, int] = attrs.field(factory=dict)
    """Largest request body in bytes, by path, for paths that take more than the operator's limit."""
    error_statuses: Mapping[str, int] = attrs.field(factory=dict)
    """HTTP statuses by error code, where they differ from ``HTTP_STATUS``."""
    request_id_header: str | None = None
    """A further header for the request's id in error responses."""
    claims: Callable[[falcon.Request], bool] = _claims_nothing
    """Whether a request is meant for this API, although its path is none of the resources."""
