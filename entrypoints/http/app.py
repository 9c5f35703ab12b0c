"""The WSGI application: middleware, the routes of every API, and error responses."""

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import falcon

from mlxk.domain.errors import InternalError, MlxkError
from mlxk.entrypoints.api_keys import KeyRing
from mlxk.entrypoints.http.access import HostGuard, KeyGuard, OriginGuard
from mlxk.entrypoints.http.anthropic.api import anthropic_api
from mlxk.entrypoints.http.api import HttpApi, ServerContext, Services
from mlxk.entrypoints.http.discovery import discovery_api
from mlxk.entrypoints.http.errors import RETRY_SECONDS, ErrorBody, error_from_falcon, raised_at, status_of
from mlxk.entrypoints.http.generation.responder import GenerationResponder
from mlxk.entrypoints.http.generation.stream_dispatcher import KEEP_ALIVE_SECONDS, StreamDispatcher
from mlxk.entrypoints.http.lifecycle import ConcurrencyLimit, Metrics, ServerLifecycle
from mlxk.entrypoints.http.middleware import BodyGuard, RequestScope, request_id
from mlxk.entrypoints.http.ollama.api import ollama_api
from mlxk.entrypoints.http.openai.api import openai_api
from mlxk.entrypoints.http.openai.errors import error_body
from mlxk.entrypoints.http.page import ChatPage
from mlxk.entrypoints.http.resources import (
    Alive,
    Docs,
    EngineWatch,
    ForgottenPromptsResource,
    Health,
    KeptPromptsResource,
    MetricsPage,
    OpenApi,
    Ready,
)
from mlxk.entrypoints.http.responses.api import responses_api
from mlxk.entrypoints.settings import MIB, ServerSettings
from mlxk.entrypoints.start_checks import offers_page

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
        self._log = services.log
        self.metrics = Metrics()
        self._limit = ConcurrencyLimit(settings.max_streams, settings.max_queue)
        responder = GenerationResponder(
            self._dispatcher, self.lifecycle, self._limit, self.metrics, services.log, services.clock
        )
        page = ChatPage() if offers_page(settings) else None
        context = ServerContext(services, settings, self.lifecycle, self._limit, self.metrics, responder, page)
        built = [make(context) for make in apis]
        body_limits = {path: limit for api in built for path, limit in api.body_limits.items()}
        self.max_body_bytes = max(settings.max_body_mib * MIB, *body_limits.values(), 0)
        """Largest request body that any path takes."""
        self._origins = OriginGuard(settings.cors_origins)
        middleware: list[Any] = [
            RequestScope(services.log, services.clock, self.metrics),
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
        """End every response."""
        self._dispatcher.close()

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
