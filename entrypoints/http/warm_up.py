"""Doing a little with a model before anybody asks, so that the first request does not wait for it to be loaded."""

from typing import TYPE_CHECKING

from mlxk.application.policy import require_embedding_model, require_served_model
from mlxk.application.use_cases.serve_catalogue import ServedModel
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.request import Finished, GenerationRequest, GenerationSettings
from mlxk.domain.models.model import Capability

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlxk.entrypoints.container import Container

_RATE = 16_000
_FRAMES = 3_200


def warm_up(container: "Container", reference: str, for_vectors: bool = False) -> None:
    """Have a model loaded and used once: one token, one vector, or a moment of silence.

    Args:
        container: The program.
        reference: The model, as the operator named it.
        for_vectors: Whether it has to be one that makes vectors.

    Raises:
        MlxkError: It cannot be found, or cannot run.
    """
    require = require_embedding_model if for_vectors else require_served_model
    model = container.use_cases.serve_catalogue().find(reference, require)
    operation = model.description.operation
    if operation is not None and operation in _WARM_UPS:
        _WARM_UPS[operation](container, model)


def _make_a_token(container: "Container", model: ServedModel) -> None:
    """Have the chat template tried, then a token made.

    What a template makes of a greeting is not computed: where a model computes slowly, the first client would wait for
    the words of the template.
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


def _make_a_vector(container: "Container", model: ServedModel) -> None:
    from mlxk.domain.embedding import EmbeddingSettings

    container.use_cases.embed_text().embed(model.description, ("Hello",), EmbeddingSettings())


def _hear_silence(container: "Container", model: ServedModel) -> None:
    import os
    import tempfile
    import wave

    from mlxk.application.use_cases.transcribe_audio import Recording
    from mlxk.domain.transcription import TranscriptionSettings

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


_WARM_UPS: "Mapping[Capability, Callable[[Container, ServedModel], None]]" = {
    Capability.TEXT_GENERATION: _make_a_token,
    Capability.AUDIO: _hear_silence,
    Capability.EMBEDDINGS: _make_a_vector,
}
"""By operation; a model of any other operation is loaded by its first request."""
