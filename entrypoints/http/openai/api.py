"""The OpenAI-compatible API: its paths, chat completions, unloading, and the document of a model."""

import functools
from collections.abc import Mapping

import falcon

from mlxk.application.ports.text_generator import TextGenerator
from mlxk.application.use_cases.serve_catalogue import ServeCatalogue
from mlxk.domain.errors import LocksPresentError, MlxkError, ValidationError
from mlxk.domain.models.model import Capability, ModelHandle, Origin, ServedModel, served_id
from mlxk.domain.transcription import SpeechTask
from mlxk.entrypoints.http.api import HttpApi, ServerContext
from mlxk.entrypoints.http.openai.audio.resource import AudioResource
from mlxk.entrypoints.http.openai.audio.speech import SpeechResource
from mlxk.entrypoints.http.openai.chat.jobs import ChatJobs
from mlxk.entrypoints.http.openai.chat.messages import register_messages
from mlxk.entrypoints.http.openai.chat.request import NEUTRAL, UNSUPPORTED, WITHOUT_EFFECT, ChatRequest
from mlxk.entrypoints.http.openai.chat.tools import register_tool_choice
from mlxk.entrypoints.http.openai.completions import Completions
from mlxk.entrypoints.http.openai.embeddings import EmbeddingsProxy, EmbeddingsResource
from mlxk.entrypoints.http.openai.errors import error_body
from mlxk.entrypoints.http.openai.renderer import ChatRenderer
from mlxk.entrypoints.http.openai.rerank import PATHS, RerankResource
from mlxk.entrypoints.http.openai.sampling import register_sampling
from mlxk.entrypoints.http.openai.tokens import RESOURCES
from mlxk.entrypoints.http.requests.body import BodyReader, read_fields
from mlxk.entrypoints.http.requests.media import MAX_UPLOAD_BYTES
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
        name = read_fields(request, "model").get("model")
        if name is not None and not isinstance(name, str):
            raise_for([FieldError("model", "must be a string")])
        if isinstance(name, str) and name:
            self._unload_one(response, name)
            return
        unloaded = self._resident.unload(None)
        busy = sorted(self._catalogue.loaded())
        send_json(response, {"object": "list", "data": [served_id(handle) for handle in unloaded], "busy": busy})

    def _unload_one(self, response: falcon.Response, name: str) -> None:
        loaded = self._catalogue.loaded()
        model = name if name in loaded else self._id_of(name)
        if model is None or model not in loaded:
            hint = "GET /v1/models shows which models are."
            raise ValidationError.in_field("model", f"'{name}' is not loaded", hint=hint)
        unloaded = self._resident.unload(loaded[model])
        if not unloaded and model in self._catalogue.loaded():
            raise LocksPresentError.in_field(
                "model", f"'{model}' answers requests and stays loaded", hint="Unload it once they have ended."
            )
        send_json(response, {"object": "list", "data": [model], "busy": []})

    def _id_of(self, name: str) -> str | None:
        """Return the id of the model to which completion requests resolve a name; None if it is unknown."""
        try:
            served = self._catalogue.find(name, lambda _: None)
        except MlxkError:
            return None
        # A stand-in answers requests with unknown names, but is not unloaded by one.
        return None if served.stands_in else served.id


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


class ChatCompletions:
    """Generates the next message of a conversation."""

    def __init__(self, server: ServerContext) -> None:
        self._reader = BodyReader(
            ChatRequest,
            (register_sampling, register_messages, register_tool_choice),
            UNSUPPORTED,
            WITHOUT_EFFECT,
            neutral=NEUTRAL,
            default_model=lambda: server.services.catalogue.default,
        )
        self._jobs = ChatJobs(server)
        self._responder = server.responder

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Generate one message or several alternatives."""
        request.context.prompt_field = "messages"
        chat = self._reader.read(request, response)
        extra = {"metadata": chat.metadata} if isinstance(chat.metadata, dict) and chat.metadata else None
        renderer = functools.partial(ChatRenderer, include_usage=chat.include_usage, extra=extra)
        self._responder.respond(request, response, self._jobs.job(chat, renderer))


_TRANSCRIPTIONS = "/v1/audio/transcriptions"
_TRANSLATIONS = "/v1/audio/translations"
_SPEECH = "/v1/audio/speech"


def openai_api(server: ServerContext) -> HttpApi:
    """Build the API."""
    services, backend = server.services, server.settings.embed_backend
    embeddings = EmbeddingsResource(server) if backend is None else EmbeddingsProxy(server, backend)
    tokens = {path: build(server) for path, build in RESOURCES.items()}
    chat, rerank = ChatCompletions(server), RerankResource(server)
    versioned = {
        "/chat/completions": chat,
        "/completions": Completions(server),
        "/embeddings": embeddings,
        "/unload": UnloadResource(services.catalogue, services.generator),
        **tokens,
    }
    return HttpApi(
        resources={
            "/generate": chat,
            _TRANSCRIPTIONS: AudioResource(server, SpeechTask.TRANSCRIBE),
            _TRANSLATIONS: AudioResource(server, SpeechTask.TRANSLATE),
            _SPEECH: SpeechResource(server),
            **dict.fromkeys(PATHS, rerank),
            **versioned,
            **{f"/v1{path}": resource for path, resource in versioned.items()},
        },
        error_body=error_body,
        body_limits={_TRANSCRIPTIONS: MAX_UPLOAD_BYTES, _TRANSLATIONS: MAX_UPLOAD_BYTES},
    )
