"""The WSGI application: middleware, the routes of every API and of what belongs to none, and error responses."""

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
    Docs,
    EngineWatch,
    ForgottenPromptsResource,
    Health,
    KeptPromptsResource,
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
"""Header of clients that read Anthropic's form."""

UP = "Ollama is running"
"""What many clients look for to know that a server is up; ours speaks that API too."""

MAX_MODELS = 1000
"""Models of one page, as in Anthropic's API."""


def discovery_api(server: ServerContext) -> HttpApi:
    """Build the resources, whose errors have OpenAI's form unless an API claims the request."""
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
    """The address of the server itself."""

    def __init__(self, page: ChatPage | None) -> None:
        self._page = page

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Give a browser the chat page, or where there is none lead it to the description; tell others that it is up.

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
        response.text = UP


class ApiIndex(Readable):
    """``/v1``: where clients are pointed to, and where people look first."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Say what there is."""
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
        """List them.

        Raises:
            ValidationError: A page is asked for that there is not.
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
        """Describe the model of exactly this name."""
        response.append_header("Vary", ANTHROPIC_VERSION)
        loaded = self._catalogue.loaded()
        for served in self._catalogue():
            if served.id == model_id:
                anthropic = request.get_header(ANTHROPIC_VERSION) is not None
                send_json(response, _anthropic_document(served) if anthropic else model_document(served, loaded))
                return
        raise ModelNotFoundError(f"no model of the name '{model_id}'", hint="GET /v1/models lists what there is.")


def _anthropic_document(served: ServedModel) -> dict[str, object]:
    return {
        "type": "model",
        "id": served.id,
        "display_name": served.id,
        "created_at": served.description.modified.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _page(models: tuple[ServedModel, ...], request: falcon.Request) -> dict[str, object]:
    """Return the page of models that the query asks for: ``limit`` after ``after_id``, or before ``before_id``."""
    limit = page_size(request, MAX_MODELS, MAX_MODELS)
    ids = [served.id for served in models]
    places = {}
    for name in ("after_id", "before_id"):
        value = request.get_param(name)
        if value is not None and value not in ids:
            raise ValidationError.in_field(name, f"'{value}' is not one of the models")
        places[name] = None if value is None else ids.index(value)
    before, after = places["before_id"], places["after_id"]
    if before is not None:
        begin, end = max(0, before - limit), before
        more = begin > 0
    else:
        begin = 0 if after is None else after + 1
        end = begin + limit
        more = end < len(models)
    data = [_anthropic_document(served) for served in models[begin:end]]
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
    """The WSGI application and the resources that it closes.

    Args:
        services: Use cases and ports.
        settings: The operator's.
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
        built = [make(context) for make in apis]
        body_limits = {path: limit for api in built for path, limit in api.body_limits.items()}
        self.max_body_bytes = max(settings.max_body_mib * MIB, *body_limits.values(), 0)
        """Largest request body that any path takes."""
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
        self._apis = built
        for api in built:
            for path, resource in api.resources.items():
                self.wsgi.add_route(path, resource)
        self._add_operational_routes(services)

    def refusal(
        self, error: MlxkError, identity: str, environment: Mapping[str, Any]
    ) -> tuple[Mapping[str, str], bytes]:
        """Return headers and body of the refusal of a request that does not get here; see ``Refusal``."""
        request = falcon.Request(dict(environment))
        api = self._api_of(request)
        content_type, body = (DEFAULT_ERROR_BODY if api is None else api.error_body)(error, identity, None)
        return {"Content-Type": content_type, "Vary": "Origin", **self._origins.headers(request)}, body

    def close(self) -> None:
        """End every response, then telemetry."""
        self._dispatcher.close()
        self._telemetry.close()

    def admit(self) -> Callable[[], None]:
        """Admit a completion of another process of this user; return the function that releases its slot.

        Raises:
            ServerShutdownError: The server drains.
            QueueFullError: There are as many completions as it takes.
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
            self.wsgi.add_route(f"{prefix}/cache/stats", KeptPromptsResource(services.generator))
            self.wsgi.add_route(f"{prefix}/cache/reset", ForgottenPromptsResource(services.generator))
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
        """Return the API that a request is meant for, whose errors it gets; None for no particular one."""
        # Middleware refuses requests before they are routed; their path then has to do for the template.
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
        """Respond to an unexpected exception. Its text may quote the request, so only its type and place are logged."""
        self._log.error(
            "a request failed unexpectedly",
            request_id=request_id(request),
            error=type(fault).__name__,
            where=raised_at(fault.__traceback__),
        )
        self._on_error(
            request, response, InternalError("The server met an unexpected condition; its log says more."), params
        )
