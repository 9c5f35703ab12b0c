"""Ollama's API: its paths and resources."""

import falcon

from mlxk import __version__
from mlxk.entrypoints.http.api import HttpApi, ServerContext
from mlxk.entrypoints.http.ollama.chat import ChatResource
from mlxk.entrypoints.http.ollama.embeddings import EmbedResource, OllamaEmbeddings
from mlxk.entrypoints.http.ollama.generate import GenerateResource
from mlxk.entrypoints.http.ollama.models import Delete, Refused, Running, Show, Tags
from mlxk.entrypoints.http.ollama.pull import Pull
from mlxk.entrypoints.http.ollama.renderer import ERROR_STATUSES, error_body
from mlxk.entrypoints.http.resources import Readable, send_json

VERSION = "0.32.0"
"""The version of Ollama whose API is implemented; clients check it."""


class Version(Readable):
    """The version of Ollama's API."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Return the version, and that of mlxk."""
        send_json(response, {"version": VERSION, "mlxk": __version__})


def ollama_api(server: ServerContext) -> HttpApi:
    """Build the API."""
    services = server.services
    return HttpApi(
        resources={
            "/api/chat": ChatResource(server),
            "/api/generate": GenerateResource(server),
            "/api/embed": EmbedResource(server),
            "/api/embeddings": OllamaEmbeddings(server),
            "/api/tags": Tags(services),
            "/api/ps": Running(services),
            "/api/show": Show(services),
            "/api/version": Version(),
            "/api/pull": Pull(server),
            "/api/delete": Delete(server),
            "/api/create": Refused(
                "create", "Send system and options with each request, or convert with mlxk convert."
            ),
            "/api/copy": Refused("copy", "A model has one name; copy it with mlxk clone."),
            "/api/push": Refused("push", "Publish it with mlxk push."),
            "/api/blobs/{digest}": Refused("blobs", "Models come from the hub: /api/pull."),
        },
        error_body=error_body,
        error_statuses=ERROR_STATUSES,
        claims=lambda request: request.path.startswith("/api/"),
    )
