"""The OpenAI-compatible API: its paths and their resources, of which ``POST /v1/chat/completions`` is here."""

import functools

import falcon

from mlxk.domain.transcription import SpeechTask
from mlxk.entrypoints.http.api import HttpApi, ServerContext
from mlxk.entrypoints.http.openai.audio.resource import AudioResource
from mlxk.entrypoints.http.openai.audio.speech import SpeechResource
from mlxk.entrypoints.http.openai.chat.jobs import ChatJobs
from mlxk.entrypoints.http.openai.chat.messages import register_messages
from mlxk.entrypoints.http.openai.chat.renderer import ChatRenderer
from mlxk.entrypoints.http.openai.chat.request import NEUTRAL, UNSUPPORTED, WITHOUT_EFFECT, ChatRequest
from mlxk.entrypoints.http.openai.chat.tools import register_tool_choice
from mlxk.entrypoints.http.openai.completions import Completions
from mlxk.entrypoints.http.openai.embeddings import EmbeddingsProxy, EmbeddingsResource
from mlxk.entrypoints.http.openai.errors import error_body
from mlxk.entrypoints.http.openai.models import UnloadResource
from mlxk.entrypoints.http.openai.rerank import PATHS, RerankResource
from mlxk.entrypoints.http.openai.sampling import register_sampling
from mlxk.entrypoints.http.openai.tokens import RESOURCES
from mlxk.entrypoints.http.requests.body import BodyReader
from mlxk.entrypoints.http.requests.media import MAX_UPLOAD_BYTES


class ChatCompletions:
    """Generates the next message of a conversation."""

    def __init__(self, server: ServerContext) -> None:
        unions = (register_sampling, register_messages, register_tool_choice)
        self._reader = BodyReader(
            ChatRequest,
            unions,
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
    described = {
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
            **described,
            **{f"/v1{path}": resource for path, resource in described.items()},
        },
        error_body=error_body,
        body_limits={_TRANSCRIPTIONS: MAX_UPLOAD_BYTES, _TRANSLATIONS: MAX_UPLOAD_BYTES},
    )
