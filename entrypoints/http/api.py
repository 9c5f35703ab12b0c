"""The interface between an HTTP API and the server: its resources, and the services they call.

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
    """Builds the use case: few servers pull, and it loads the client of the hub."""
    remove: Callable[[], RemoveModel]
    generator: TextGenerator
    clock: Clock
    log: EventLog
    telemetry: Telemetry


@attrs.frozen
class ServerContext:
    """The services and settings that an API is built from."""

    services: Services
    settings: ServerSettings
    lifecycle: ServerLifecycle
    limit: ConcurrencyLimit
    metrics: Metrics
    tracer: Tracer
    responder: GenerationResponder
    page: ChatPage | None = None
    """The chat page; None for a server that has none."""

    @property
    def media(self) -> MediaReader:
        """What reads the media of messages."""
        return MediaReader(self.services.audio_decoder, self.services.named_media, self.services.clock)

    def settings_for(self, model: ServedModel) -> ServerSettings:
        """Return the settings for requests to a model: what its name says, else what the server's say."""
        own = self.services.generate.profile_of(model.handle)
        start, end = own.thinking_tags or (None, None)
        said: dict[str, Any] = {
            "max_tokens": own.settings.max_tokens,
            "thinking_budget": own.settings.thinking_budget,
            "enable_thinking": own.thinking,
            "thinking_start_token": start,
            "thinking_end_token": end,
        }
        return attrs.evolve(self.settings, **{name: value for name, value in said.items() if value is not None})


def _claims_nothing(_: falcon.Request) -> bool:
    return False


@attrs.frozen
class HttpApi:
    """Resources with one format of errors."""

    resources: Mapping[str, object]
    """Falcon resources by their path template."""
    error_body: ErrorBody
    """Renders the errors of these paths."""
    body_limits: Mapping[str, int] = attrs.field(factory=dict)
    """Largest request bodies in bytes, for paths that take more than the operator's limit."""
    error_statuses: Mapping[str, int] = attrs.field(factory=dict)
    """HTTP statuses by the code of an error, where they are others than usual."""
    request_id_header: str | None = None
    """A header of its errors with the id of the request, beside the common one."""
    claims: Callable[[falcon.Request], bool] = _claims_nothing
    """Whether a request is meant for this API, although its path is not one of the resources."""
