"""The OpenAI-compatible API: its paths and their resources."""

from mlxk.domain.transcription import SpeechTask
from mlxk.entrypoints.http.api import HttpApi, ServerContext
from mlxk.entrypoints.http.openai.audio.resource import AudioResource
from mlxk.entrypoints.http.openai.audio.upload import MAX_UPLOAD_BYTES
from mlxk.entrypoints.http.openai.chat.resource import ChatCompletions
from mlxk.entrypoints.http.openai.completions import Completions
from mlxk.entrypoints.http.openai.embeddings import EmbeddingsProxy, EmbeddingsResource
from mlxk.entrypoints.http.openai.errors import error_body
from mlxk.entrypoints.http.openai.models import UnloadResource
from mlxk.entrypoints.http.openai.tokens import RESOURCES

_TRANSCRIPTIONS = "/v1/audio/transcriptions"
_TRANSLATIONS = "/v1/audio/translations"


def openai_api(server: ServerContext) -> HttpApi:
    """Build the API."""
    services, backend = server.services, server.settings.embed_backend
    embeddings = EmbeddingsResource(server) if backend is None else EmbeddingsProxy(server, backend)
    tokens = {path: build(server) for path, build in RESOURCES.items()}
    chat = ChatCompletions(server)
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
            **described,
            **{f"/v1{path}": resource for path, resource in described.items()},
        },
        error_body=error_body,
        body_limits={_TRANSCRIPTIONS: MAX_UPLOAD_BYTES, _TRANSLATIONS: MAX_UPLOAD_BYTES},
    )
