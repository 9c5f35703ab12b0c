"""The application: routes, guards, and how failures are answered."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
import falcon

from mlxk.application.ports.clock import Clock
from mlxk.application.ports.event_log import EventLog
from mlxk.application.ports.text_generator import TextGenerator
from mlxk.application.use_cases.serve_catalogue import ServeCatalogue
from mlxk.application.use_cases.serve_text import ServeText
from mlxk.domain.errors import InternalError, MlxkError
from mlxk.entrypoints.http.errors import RETRY_SECONDS, error_document, status_of, translate
from mlxk.entrypoints.http.foreign_logs import where
from mlxk.entrypoints.http.guards import BodyGuard, HostGuard, KeyGuard, OriginGuard
from mlxk.entrypoints.http.lifecycle import ConcurrencyLimit, ServerLifecycle
from mlxk.entrypoints.http.metrics import Metrics
from mlxk.entrypoints.http.on_demand import Embedding, Listening, OnDemand
from mlxk.entrypoints.http.request_scope import RequestScope, request_id
from mlxk.entrypoints.http.requests.reader import RequestReader
from mlxk.entrypoints.http.resources.documents import Docs, OpenApi
from mlxk.entrypoints.http.resources.embeddings_proxy import EmbeddingsProxy
from mlxk.entrypoints.http.resources.generation import ChatCompletions, Completions
from mlxk.entrypoints.http.resources.models import Model, Models, Unload
from mlxk.entrypoints.http.resources.probes import Alive, EngineWatch, Health, MetricsPage, Ready
from mlxk.entrypoints.http.resources.readable import send_json
from mlxk.entrypoints.http.responses.generation_responder import GenerationResponder
from mlxk.entrypoints.http.responses.stream_dispatcher import PING_SECONDS, StreamDispatcher
from mlxk.entrypoints.settings import MIB, ServerSettings

if TYPE_CHECKING:
    from mlxk.application.ports.audio_decoder import AudioDecoder
    from mlxk.application.use_cases.embed_text import EmbedText
    from mlxk.application.use_cases.serve_images import ServeImages
    from mlxk.application.use_cases.transcribe_audio import TranscribeAudio


@attrs.frozen
class Ports:
    """What the application works with."""

    catalogue: ServeCatalogue
    serve_text: ServeText
    serve_images: "Callable[[], ServeImages]"
    """This and the next three are made when they are first needed."""
    sounds: "Callable[[], AudioDecoder]"
    transcribe: "Callable[[], TranscribeAudio]"
    embed: "Callable[[], EmbedText]"
    resident: TextGenerator
    clock: Clock
    log: EventLog


class Application:
    """The WSGI application and what must be ended with it.

    Args:
        ports: The use cases and ports it serves.
        settings: The operator's.
        ping_seconds: Silence after which a stream gets a sign of life.
    """

    def __init__(self, ports: Ports, settings: ServerSettings, ping_seconds: float = PING_SECONDS) -> None:
        self.life = ServerLifecycle()
        self.pump = StreamDispatcher(ports.clock, ports.log, ping_seconds)
        self._log = ports.log
        self._metrics = Metrics()
        self._admission = ConcurrencyLimit(settings.max_streams, settings.max_queue)
        guards: list[Any] = [
            RequestScope(ports.log, ports.clock, self._metrics),
            HostGuard(settings.host, settings.allowed_hosts),
            OriginGuard(settings.cors_origins),
            KeyGuard(settings.api_keys),
            BodyGuard(settings.max_body_mib * MIB),
        ]
        self.wsgi = falcon.App(middleware=guards)
        self.wsgi.req_options.strip_url_path_trailing_slash = True
        self.wsgi.add_error_handler(MlxkError, self._on_failure)
        self.wsgi.add_error_handler(falcon.HTTPError, self._on_http_error)
        self.wsgi.add_error_handler(Exception, self._on_fault)
        self._add_routes(ports, settings)

    def close(self) -> None:
        """End every answer."""
        self.pump.close()

    def drain(self) -> None:
        """Take no new work."""
        self.life.draining = True

    def abort(self) -> None:
        """Give up what is still in progress."""
        self.life.aborted = True
        self.pump.abort()

    def _add_routes(self, ports: Ports, settings: ServerSettings) -> None:
        listening = Listening(
            transcribe=ports.transcribe,
            sounds=ports.sounds,
            catalogue=ports.catalogue,
            life=self.life,
            admission=self._admission,
            clock=ports.clock,
            log=ports.log,
            max_tokens=settings.max_tokens,
        )
        embedding = Embedding(ports.embed, ports.catalogue, self.life, self._admission, settings.embed_model)
        reader = RequestReader(listening.read)
        watch = EngineWatch(ports.resident, ports.clock)
        answering = GenerationResponder(
            ports.serve_text, self.pump, self.life, self._admission, self._metrics, ports.log, ports.clock
        )
        add = self.wsgi.add_route
        add(
            "/v1/chat/completions",
            ChatCompletions(reader, ports.catalogue, answering, ports.serve_images, listening.spoken, settings),
        )
        add("/v1/completions", Completions(reader, ports.catalogue, answering, settings.max_tokens))
        add("/v1/audio/transcriptions", OnDemand(listening.transcriptions))
        add("/v1/audio/translations", OnDemand(listening.translations))
        backend = settings.embed_backend
        add(
            "/v1/embeddings",
            EmbeddingsProxy(backend, self.life, self._admission) if backend else OnDemand(embedding),
        )
        add("/v1/models", Models(ports.catalogue))
        add("/v1/models/{model_id:path}", Model(ports.catalogue))
        add("/v1/unload", Unload(ports.catalogue, ports.resident))
        add("/health", Health(watch))
        add("/livez", Alive())
        add("/readyz", Ready(self.life, watch))
        add("/metrics", MetricsPage(self._metrics, self._admission, watch))
        add("/openapi.json", OpenApi())
        add("/docs", Docs())

    def _on_failure(
        self, request: falcon.Request, response: falcon.Response, error: MlxkError, params: dict[str, object]
    ) -> None:
        response.status = falcon.code_to_http_status(status_of(error))
        if error.code in RETRY_SECONDS:
            response.set_header("Retry-After", str(RETRY_SECONDS[error.code]))
        if error.code == "unauthorized":
            response.set_header("WWW-Authenticate", "Bearer")
        field = getattr(request.context, "prompt_field", None) if error.code == "context_length_exceeded" else None
        send_json(response, error_document(error, request_id(request), field))

    def _on_http_error(
        self, request: falcon.Request, response: falcon.Response, error: falcon.HTTPError, params: dict[str, object]
    ) -> None:
        allow = error.headers.get("Allow") if isinstance(error.headers, dict) else None
        if allow:
            response.set_header("Allow", allow)
        self._on_failure(request, response, translate(error), params)

    def _on_fault(
        self, request: falcon.Request, response: falcon.Response, fault: Exception, params: dict[str, object]
    ) -> None:
        """Answer a fault of ours. Its text may quote the request, so the log gets its kind and place only."""
        self._log.error(
            "a request failed unexpectedly",
            request_id=request_id(request),
            error=type(fault).__name__,
            where=where(fault.__traceback__),
        )
        self._on_failure(
            request, response, InternalError("The server met an unexpected condition; its log says more."), params
        )
