"""Loads a model and runs it once, before the server reports that it is ready."""

import os
import tempfile
import wave
from collections.abc import Callable, Mapping

from mlxk.application.generation_input import GenerationOptions, Recording
from mlxk.application.policy import require_embedding_model, require_served_model
from mlxk.domain.embedding import EmbeddingSettings
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.request import Finished
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import Capability, ServedModel
from mlxk.domain.reranking import RerankSettings
from mlxk.domain.synthesis import SynthesisSettings
from mlxk.domain.transcription import TranscriptionSettings
from mlxk.entrypoints.container import Container

_RATE, _FRAMES = 16_000, 3_200
"""Sample rate in Hz, and samples, of the silence to transcribe."""


def warm_up(container: Container, reference: str, for_vectors: bool = False) -> None:
    """Load a model and run it once, for one token, one vector, or a moment of silence.

    Args:
        container: The use cases.
        reference: The model, as the operator named it.
        for_vectors: Whether it must be an embedding model.

    Raises:
        MlxkError: The model cannot be found or run.
    """
    require = require_embedding_model if for_vectors else require_served_model
    model = container.use_cases.serve_catalogue().find(reference, require)
    unloads = container.adapters.server is not None and container.adapters.server.keep_alive is not None
    container.use_cases.generate_text().default_draft(model.details, unloads=unloads)  # raises for an unusable draft
    operation = model.description.operation
    if operation is not None and operation in _WARM_UPS:
        _WARM_UPS[operation](container, model)


def _generate_token(container: Container, model: ServedModel) -> None:
    """Render the chat template, then generate one token from a short text.

    The conversation is cancelled before its prefill, which would delay the first client on a slow machine.
    """
    generate, greedy = container.use_cases.generate_text(), GenerationSettings(max_tokens=1, temperature=0.0)
    options = GenerationOptions(greedy, draft_reference=generate.default_draft(model.details))
    if model.can_chat:
        for stream in generate(model.details, [Conversation.of("Hello")], options):
            stream.cancel()
    for stream in generate(model.details, ["Hello"], options):
        for event in stream:
            if isinstance(event, Finished):
                break


def _transcribe_silence(container: Container, model: ServedModel) -> None:
    with tempfile.TemporaryDirectory(prefix="mlxk-") as folder:
        path = os.path.join(folder, "silence.wav")
        with wave.open(path, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(_RATE)
            file.writeframes(bytes(2 * _FRAMES))
        recording = Recording(path, "silence")
        for _ in container.use_cases.transcribe_audio()(model.description, recording, TranscriptionSettings()):
            pass


def _speak_word(container: Container, model: ServedModel) -> None:
    for _ in container.use_cases.speak_text()(model.details, "Yes.", SynthesisSettings()):
        pass


_WARM_UPS: Mapping[Capability, Callable[[Container, ServedModel], object]] = {
    Capability.TEXT_GENERATION: _generate_token,
    Capability.AUDIO: _transcribe_silence,
    Capability.EMBEDDINGS: lambda container, model: container.use_cases.embed_text()(
        model.description, ("a",), EmbeddingSettings()
    ),
    Capability.TEXT_TO_SPEECH: _speak_word,
    Capability.RERANK: lambda container, model: container.use_cases.rerank_documents()(
        model.description, "a", ("a",), RerankSettings()
    ),
}
"""By operation; a model of any other operation is loaded by its first request."""
