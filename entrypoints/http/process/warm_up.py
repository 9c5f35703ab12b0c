"""Warm-up: loads a model and runs it once, so that the first request does not wait."""

import os
import tempfile
import wave
from collections.abc import Callable, Mapping

from mlxk.application.policy import require_embedding_model, require_served_model
from mlxk.application.use_cases.serve_catalogue import ServedModel
from mlxk.application.use_cases.transcribe_audio import Recording
from mlxk.domain.embedding import EmbeddingSettings
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.request import Finished, GenerationRequest, GenerationSettings
from mlxk.domain.models.model import Capability
from mlxk.domain.transcription import TranscriptionSettings
from mlxk.entrypoints.container import Container

_RATE = 16_000
_FRAMES = 3_200


def warm_up(container: Container, reference: str, for_vectors: bool = False) -> None:
    """Load a model and run it once, for one token, one vector, or a moment of silence.

    Args:
        container: The use cases.
        reference: The model, as the operator named it.
        for_vectors: Whether it must be an embedding model.

    Raises:
        MlxkError: It cannot be found, or cannot run.
    """
    require = require_embedding_model if for_vectors else require_served_model
    model = container.use_cases.serve_catalogue().find(reference, require)
    operation = model.description.operation
    if operation is not None and operation in _WARM_UPS:
        _WARM_UPS[operation](container, model)


def _generate_token(container: Container, model: ServedModel) -> None:
    """Render the chat template, then generate a token.

    The rendered conversation is cancelled before its prefill: on a slow machine the first client would wait for it.
    """
    serve = container.use_cases.serve_text()
    settings = GenerationSettings(max_tokens=1, temperature=0.0)
    if model.can_chat:
        for stream in serve(model, (GenerationRequest(model.handle, Conversation.of("Hello"), settings),)):
            stream.cancel()
    for stream in serve(model, (GenerationRequest(model.handle, "Hello", settings),)):
        for event in stream:
            if isinstance(event, Finished):
                break


def _embed_word(container: Container, model: ServedModel) -> None:
    container.use_cases.embed_text().embed(model.description, ("Hello",), EmbeddingSettings())


def _transcribe_silence(container: Container, model: ServedModel) -> None:
    with tempfile.TemporaryDirectory(prefix="mlxk-") as folder:
        path = os.path.join(folder, "silence.wav")
        with wave.open(path, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(_RATE)
            file.writeframes(bytes(2 * _FRAMES))
        events = container.use_cases.transcribe_audio().listen(
            model.description, Recording(path, "silence"), TranscriptionSettings()
        )
        for _ in events:
            pass


_WARM_UPS: Mapping[Capability, Callable[[Container, ServedModel], None]] = {
    Capability.TEXT_GENERATION: _generate_token,
    Capability.AUDIO: _transcribe_silence,
    Capability.EMBEDDINGS: _embed_word,
}
"""By operation; a model of another operation is loaded by its first request."""
