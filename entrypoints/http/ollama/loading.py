"""Requests without a prompt, which load a model, unload it, or change how long it stays in memory."""

from collections.abc import Mapping

import falcon

from mlxk.application.policy import require_text_model
from mlxk.domain.models.model import ServedModel
from mlxk.entrypoints.http.api import ServerContext
from mlxk.entrypoints.http.ollama.fields import GenerationFields
from mlxk.entrypoints.http.ollama.names import ModelNames, require_any
from mlxk.entrypoints.http.ollama.renderer import timestamp
from mlxk.entrypoints.http.resources import send_json


class ModelLoading:
    """Loads and unloads models.

    Args:
        server: Services and settings.
    """

    def __init__(self, server: ServerContext) -> None:
        self._services = server.services
        self._settings = server.settings
        self._lifecycle = server.lifecycle
        self._limit = server.limit
        self._names = ModelNames(server.services.catalogue)

    def respond(self, response: falcon.Response, body: GenerationFields, content: Mapping[str, object]) -> None:
        """Load or unload the model of a request, and send one document, also if the request is for a stream.

        Args:
            response: Receives the document.
            body: The request.
            content: Fields for the empty content of the response.

        Raises:
            MlxkError: There is no such model, or it cannot be loaded.
        """
        self._lifecycle.require_open()
        unloads = body.keep_alive_seconds == 0
        model = self._names.find(body, require_any if unloads else require_text_model)
        release = self._limit.enter(1)
        try:
            if unloads:
                self.unload(model.served)
            else:
                self._services.load(
                    model.served.description, body.keep_alive_seconds, strict_memory=self._settings.strict_memory
                )
        finally:
            release()
        document = {
            "model": model.name,
            "created_at": timestamp(self._services.clock.now()),
            **content,
            "done": True,
            "done_reason": "unload" if unloads else "load",
        }
        send_json(response, document)

    def unload(self, model: ServedModel) -> None:
        """Unload a model once its requests have ended."""
        handle = self._services.catalogue.loaded().get(model.id)
        if handle is not None:
            self._services.generator.unload(handle, once_idle=True)
