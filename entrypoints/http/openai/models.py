"""``POST /v1/unload``, and the document of a model in OpenAI's form."""

from collections.abc import Mapping

import falcon

from mlxk.application.ports.text_generator import TextGenerator
from mlxk.application.use_cases.serve_catalogue import ServeCatalogue
from mlxk.domain.errors import LocksPresentError, MlxkError, ValidationError
from mlxk.domain.models.model import Capability, ModelHandle, Origin, ServedModel, served_id
from mlxk.entrypoints.http.requests.body import read_object
from mlxk.entrypoints.http.requests.validation import FieldError, raise_for
from mlxk.entrypoints.http.resources import send_json

OWNERS = {Origin.CACHE: "mlxk", Origin.WORKSPACE: "workspace", Origin.BUILT_IN: "built-in"}


class UnloadResource:
    """Unloads models."""

    def __init__(self, catalogue: ServeCatalogue, resident: TextGenerator) -> None:
        self._catalogue = catalogue
        self._resident = resident

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Unload one model or all; models in use stay loaded.

        Raises:
            ValidationError: The model is not loaded.
            LocksPresentError: The model is in use.
        """
        body = read_object(request) if request.content_length else {}
        name = body.get("model")
        if name is not None and not isinstance(name, str):
            raise_for([FieldError("model", "must be a string")])
        raise_for(
            [
                FieldError(key, "is not known here")
                for key, value in body.items()
                if key != "model" and value is not None
            ]
        )
        if isinstance(name, str) and name:
            self._unload_one(response, name)
            return
        gone = self._resident.unload(None)
        busy = sorted(self._catalogue.loaded())
        send_json(response, {"object": "list", "data": [served_id(handle) for handle in gone], "busy": busy})

    def _unload_one(self, response: falcon.Response, name: str) -> None:
        loaded = self._catalogue.loaded()
        model = name if name in loaded else self._id_of(name)
        if model is None or model not in loaded:
            hint = "GET /v1/models shows which models are."
            raise ValidationError.in_field("model", f"'{name}' is not loaded", hint=hint)
        gone = self._resident.unload(loaded[model])
        if not gone and model in self._catalogue.loaded():
            raise LocksPresentError.in_field(
                "model", f"'{model}' answers requests and stays loaded", hint="Unload it once they have ended."
            )
        send_json(response, {"object": "list", "data": [model], "busy": []})

    def _id_of(self, name: str) -> str | None:
        """Return the id of the model that a name means, as requests for completions take it; None for none."""
        try:
            meant = self._catalogue.find(name, lambda _: None)
        except MlxkError:
            return None
        # The model that answers to unknown names is not meant by one here.
        return None if meant.stands_in else meant.id


def model_document(served: ServedModel, loaded: Mapping[str, ModelHandle]) -> dict[str, object]:
    """Return the JSON document of a model."""
    description, quantization = served.description, served.details.quantization
    return {
        "id": served.id,
        "object": "model",
        "created": int(description.modified.timestamp()),
        "owned_by": OWNERS[served.handle.origin],
        "permission": [],
        "context_length": description.context_length,
        "capabilities": [capability.value for capability in description.capabilities],
        "supports_tools": served.details.supports_tools,
        "tools_missing": served.details.tools_missing.value if served.details.tools_missing is not None else None,
        "supports_reasoning": served.details.supports_reasoning,
        "loaded": (served.alias_of or served.id) in loaded,
        "size_bytes": description.size_bytes,
        "quantization": None
        if quantization is None
        else {"bits": quantization.bits, "group_size": quantization.group_size, "mode": quantization.mode},
        "system_fingerprint": served.fingerprint,
        **({"voices": list(served.details.voices)} if description.can(Capability.TEXT_TO_SPEECH) else {}),
        **({} if served.alias_of is None else {"alias_of": served.alias_of}),
        **({} if served.adapter_version is None else {"parent": served.alias_of}),
    }
