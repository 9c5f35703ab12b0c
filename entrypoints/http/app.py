"""The WSGI application: middleware, routes of all APIs, resources that belong to none, and error responses."""

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import falcon

from mlxk import __version__
from mlxk.application.use_cases.serve_catalogue import ServeCatalogue
from mlxk.domain.errors import InternalError, MlxkError, ModelNotFoundError, ValidationError
from mlxk.domain.models.model import ServedModel
from mlxk.entrypoints.api_keys import KeyRing
from mlxk.entrypoints.http.access import HostGuard, KeyGuard, OriginGuard
from mlxk.entrypoints.http.anthropic.api import anthropic_api
from mlxk.entrypoints.http.api import HttpApi, ServerContext, Services
from mlxk.entrypoints.http.errors import RETRY_SECONDS, ErrorBody, error_from_falcon, raised_at, status_of
from mlxk.entrypoints.http.generation.responder import AnswerRecords, GenerationResponder
from mlxk.entrypoints.http.generation.stream_dispatcher import KEEP_ALIVE_SECONDS, StreamDispatcher
from mlxk.entrypoints.http.lifecycle import ConcurrencyLimit, Metrics, ServerLifecycle
from mlxk.entrypoints.http.ollama.api import ollama_api
from mlxk.entrypoints.http.openai.api import model_document, openai_api
from mlxk.entrypoints.http.openai.errors import error_body
from mlxk.entrypoints.http.page import INDEX, PREFIX, ChatPage, PageFile, asks_for_page
from mlxk.entrypoints.http.request_scope import RequestScope, Trace, Tracer, request_id
from mlxk.entrypoints.http.requests.body_guard import BodyGuard
from mlxk.entrypoints.http.resources import (
    Alive,
    CacheResetResource,
    CacheStatsResource,
    Docs,
    EngineWatch,
    Health,
    MetricsPage,
    OpenApi,
    Readable,
    Ready,
    page_size,
    send_json,
)
from mlxk.entrypoints.http.responses.api import responses_api
from mlxk.entrypoints.settings import MIB, ServerSettings
from mlxk.entrypoints.start_checks import offers_page

ANTHROPIC_VERSION = "Anthropic-Version"
"""Header by which clients of Anthropic's API are recognized."""

_RUNNING = "Ollama is running"
"""The text by which clients of Ollama's API recognize a running server."""

MAX_MODELS = 1000
"""Most models on one page of the list, as in Anthropic's API."""


def discovery_api(server: ServerContext) -> HttpApi:
    """Build the index and the model lists; their errors have OpenAI's form unless another API claims the request."""
    listing, one = ModelsResource(server.services.catalogue), ModelResource(server.services.catalogue)
    return HttpApi(
        resources={
            "/": Root(server.page),
            "/v1": ApiIndex(),
            **({} if server.page is None else {f"{PREFIX}{{file:path}}": PageFile(server.page)}),
            "/models": listing,
            "/v1/models": listing,
            "/models/{model_id:path}": one,
            "/v1/models/{model_id:path}": one,
        },
        error_body=error_body,
    )


class Root(Readable):
    """``/``: the chat page for browsers, a text for other clients."""

    def __init__(self, page: ChatPage | None) -> None:
        self._page = page

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Send the chat page to browsers, or redirect them to ``/docs`` without one; tell others that the server runs.

        Raises:
            HTTPFound: The client is a browser, and there is no chat page.
        """
        response.append_header("Vary", "Accept")
        if asks_for_page(request):
            if self._page is None:
                raise falcon.HTTPFound("/docs")
            self._page.send(INDEX, request, response)
            return
        response.content_type = "text/plain; charset=utf-8"
        response.text = _RUNNING


class ApiIndex(Readable):
    """``/v1``: an overview for people who open the base address of clients."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """List the entry points."""
        send_json(
            response,
            {
                "service": "mlxk-server",
                "version": __version__,
                "message": "Point clients of OpenAI's API here, those of other APIs to the address without /v1.",
                "models": "/v1/models",
                "openapi": "/openapi.json",
                "docs": "/docs",
            },
        )


class ModelsResource(Readable):
    """Lists the models that can run here."""

    def __init__(self, catalogue: ServeCatalogue) -> None:
        self._catalogue = catalogue

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """List the models, in Anthropic's form by pages.

        Raises:
            ValidationError: The query names no valid page.
        """
        response.append_header("Vary", ANTHROPIC_VERSION)
        if request.get_header(ANTHROPIC_VERSION) is not None:
            send_json(response, _page(self._catalogue(), request))
            return
        loaded = self._catalogue.loaded()
        data = [model_document(served, loaded) for served in self._catalogue()]
        send_json(response, {"object": "list", "data": data})


class ModelResource(Readable):
    """Describes one model."""

    def __init__(self, catalogue: ServeCatalogue) -> None:
        self._catalogue = catalogue

    def on_get(self, request: falcon.Request, response: falcon.Response, model_id: str) -> None:
        """Describe the model with exactly this id."""
        response.append_header("Vary", ANTHROPIC_VERSION)
        loaded = self._catalogue.loaded()
        for served in self._catalogue():
            if served.id == model_id:
                anthropic = request.get_header(ANTHROPIC_VERSION) is not None
                send_json(response, _anthropic_model(served) if anthropic else model_document(served, loaded))
                return
        raise ModelNotFoundError(f"no model of the name '{model_id}'", hint="GET /v1/models lists what there is.")


def _anthropic_model(served: ServedModel) -> dict[str, object]:
    return {
        "type": "model",
        "id": served.id,
        "display_name": served.id,
        "created_at": served.description.modified.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _page(models: tuple[ServedModel, ...], request: falcon.Request) -> dict[str, object]:
    """Return the page of models in the query: ``limit`` models after ``after_id``, or before ``before_id``."""
    limit = page_size(request, MAX_MODELS, MAX_MODELS)
    ids = [served.id for served in models]
    indices = {}
    for name in ("after_id", "before_id"):
        value = request.get_param(name)
        if value is not None and value not in ids:
            raise ValidationError.in_field(name, f"'{value}' is not one of the models")
        indices[name] = None if value is None else ids.index(value)
    before, after = indices["before_id"], indices["after_id"]
    if before is not None:
        begin, end = max(0, before - limit), before
        more = begin > 0
    else:
        begin = 0 if after is None else after + 1
        end = begin + limit
        more = end < len(models)
    data = [_anthropic_model(served) for served in models[begin:end]]
    return {
        "data": data,
        "has_more": more,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }


APIS: Sequence[Callable[[ServerContext], HttpApi]] = (
    discovery_api,
    openai_api,
    responses_api,
    anthropic_api,
    ollama_api,
)
"""Every HTTP API of the server."""

DEFAULT_ERROR_BODY: ErrorBody = error_body
"""Renders the errors of requests that belong to no API."""


class Application:
    """The WSGI application and what it owns: the stream dispatcher, the concurrency limit and the metrics.

    Args:
        services: Use cases and ports.
        settings: The operator's settings.
        keep_alive_seconds: Silence after which a stream gets a keep-alive frame.
        apis: The HTTP APIs to serve.
    """

    def __init__(
        self,
        services: Services,
        settings: ServerSettings,
        keep_alive_seconds: float = KEEP_ALIVE_SECONDS,
        apis: Sequence[Callable[[ServerContext], HttpApi]] = APIS,
    ) -> None:
        self.lifecycle = ServerLifecycle()
        self._dispatcher = StreamDispatcher(services.clock, services.log, keep_alive_seconds)
        self._log, self._telemetry = services.log, services.telemetry
        self.metrics = Metrics()
        tracer = Tracer(services.telemetry, services.clock)
        self._limit = ConcurrencyLimit(settings.max_streams, settings.max_queue)
        records = AnswerRecords(self.metrics, tracer, services.log)
        responder = GenerationResponder(self._dispatcher, self.lifecycle, self._limit, records, services.clock)
        page = ChatPage() if offers_page(settings) else None
        context = ServerContext(services, settings, self.lifecycle, self._limit, self.metrics, tracer, responder, page)
        self._apis = [build(context) for build in apis]
        body_limits = {path: limit for api in self._apis for path, limit in api.body_limits.items()}
        self.max_body_bytes = max(settings.max_body_mib * MIB, *body_limits.values(), 0)
        """Largest request body of any path, in bytes."""
        self._origins = OriginGuard(settings.cors_origins)
        middleware: list[Any] = [
            RequestScope(services.log, services.clock, self.metrics, tracer),
            HostGuard(settings.host, settings.allowed_hosts, socket.gethostname()),
            self._origins,
            KeyGuard(
                KeyRing(settings.api_keys, settings.api_key_file, self._on_key_failure, settings.operator_key), page
            ),
            BodyGuard(settings.max_body_mib * MIB, body_limits),
        ]
        self.wsgi = falcon.App(middleware=middleware)
        self.wsgi.req_options.strip_url_path_trailing_slash = True
        self.wsgi.add_error_handler(MlxkError, self._on_error)
        self.wsgi.add_error_handler(falcon.HTTPError, self._on_http_error)
        self.wsgi.add_error_handler(Exception, self._on_fault)
        for api in self._apis:
            for path, resource in api.resources.items():
                self.wsgi.add_route(path, resource)
        self._add_operational_routes(services)

    def refusal(
        self, error: MlxkError, identity: str, environment: Mapping[str, Any]
    ) -> tuple[Mapping[str, str], bytes]:
        """Return headers and body that refuse a request before it reaches the application; see ``Refusal``."""
        request = falcon.Request(dict(environment))
        api = self._api_of(request)
        content_type, body = (DEFAULT_ERROR_BODY if api is None else api.error_body)(error, identity, None)
        return {"Content-Type": content_type, "Vary": "Origin", **self._origins.headers(request)}, body

    def close(self) -> None:
        """End all responses, then telemetry."""
        self._dispatcher.close()
        self._telemetry.close()

    def admit(self) -> Callable[[], None]:
        """Admit a completion for another process of this user; return the function that releases its slot.

        Raises:
            ServerShutdownError: The server drains.
            QueueFullError: No slot is free.
        """
        self.lifecycle.require_open()
        return self._limit.enter(1)

    def drain(self) -> None:
        """Refuse new work."""
        self.lifecycle.draining = True

    def abort(self) -> None:
        """Cancel the work in progress."""
        self.lifecycle.aborted = True
        self._dispatcher.abort()

    def _add_operational_routes(self, services: Services) -> None:
        watch = EngineWatch(services.generator, services.clock)
        self.wsgi.add_route("/health", Health(watch))
        self.wsgi.add_route("/livez", Alive())
        self.wsgi.add_route("/readyz", Ready(self.lifecycle, self._limit, watch))
        metrics = MetricsPage(self.metrics, self._limit, watch)
        self.wsgi.add_route("/metrics", metrics)
        self.wsgi.add_route("/v1/metrics", metrics)
        for prefix in ("", "/v1"):
            self.wsgi.add_route(f"{prefix}/cache/stats", CacheStatsResource(services.generator))
            self.wsgi.add_route(f"{prefix}/cache/reset", CacheResetResource(services.generator))
        self.wsgi.add_route("/openapi.json", OpenApi())
        self.wsgi.add_route("/docs", Docs())

    def _on_key_failure(self, error: MlxkError) -> None:
        self._log.error("the key file cannot be read again; its former keys hold", reason=error.message)

    def _on_error(
        self, request: falcon.Request, response: falcon.Response, error: MlxkError, params: dict[str, object]
    ) -> None:
        trace: Trace | None = getattr(request.context, "trace", None)
        if trace is not None and not trace.ends_later:
            trace.error = error.code
        api = self._api_of(request)
        status = status_of(error) if api is None else api.error_statuses.get(error.code, status_of(error))
        response.status = falcon.code_to_http_status(status)
        if error.code in RETRY_SECONDS:
            response.set_header("Retry-After", str(RETRY_SECONDS[error.code]))
        if error.code == "unauthorized":
            response.set_header("WWW-Authenticate", "Bearer")
        if api is not None and api.request_id_header is not None:
            response.set_header(api.request_id_header, request_id(request))
        field = getattr(request.context, "prompt_field", None) if error.code == "context_length_exceeded" else None
        render = DEFAULT_ERROR_BODY if api is None else api.error_body
        response.content_type, response.data = render(error, request_id(request), field)

    def _api_of(self, request: falcon.Request) -> HttpApi | None:
        """Return the API whose error format a request gets; None for a request of no API."""
        # Middleware may refuse a request before it is routed; it then has a path, but no template.
        path = request.uri_template or request.path.rstrip("/")
        claimed = (api for api in self._apis if api.claims(request))
        owned = (api for api in self._apis if path in api.resources)
        return next(claimed, None) or next(owned, None)

    def _on_http_error(
        self, request: falcon.Request, response: falcon.Response, error: falcon.HTTPError, params: dict[str, object]
    ) -> None:
        allow = error.headers.get("Allow") if isinstance(error.headers, dict) else None
        if allow:
            response.set_header("Allow", allow)
        self._on_error(request, response, error_from_falcon(error), params)

    def _on_fault(
        self, request: falcon.Request, response: falcon.Response, fault: Exception, params: dict[str, object]
    ) -> None:
        """Respond to an unexpected exception. Its text may quote the request; only its type and location are logged."""
        self._log.error(
            "a request failed unexpectedly",
            request_id=request_id(request),
            error=type(fault).__name__,
            where=raised_at(fault.__traceback__),
        )
        self._on_error(
            request, response, InternalError("The server met an unexpected condition; its log says more."), params
        )
