"""What clients ask to find out where they are: ``/``, ``/v1``, and ``/v1/models`` in the form of either reader."""

import falcon

from mlxk import __version__
from mlxk.application.use_cases.serve_catalogue import ServeCatalogue
from mlxk.domain.errors import ModelNotFoundError, ValidationError
from mlxk.domain.models.model import ServedModel
from mlxk.entrypoints.http.api import HttpApi, ServerContext
from mlxk.entrypoints.http.openai.errors import error_body
from mlxk.entrypoints.http.openai.models import model_document
from mlxk.entrypoints.http.page import INDEX, PREFIX, ChatPage, PageFile, asks_for_page
from mlxk.entrypoints.http.resources import Readable, page_size, send_json

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
