"""Loads the model to preload, and runs it once, so that the first request does not wait."""

import os
import tempfile
import threading
import wave
from collections.abc import Callable, Mapping

from mlxk.application.incoming_message import Recording
from mlxk.application.policy import require_embedding_model, require_served_model
from mlxk.application.use_cases.generate_text import GenerationOptions
from mlxk.application.use_cases.serve_catalogue import ServedModel
from mlxk.domain.embedding import EmbeddingSettings
from mlxk.domain.errors import MlxkError
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.request import Finished, GenerationSettings
from mlxk.domain.models.model import Capability
from mlxk.domain.transcription import TranscriptionSettings
from mlxk.entrypoints.container import Container
from mlxk.entrypoints.http.app import Application
from mlxk.entrypoints.settings import ServerSettings

_RATE = 16_000
_FRAMES = 3_200

Report = Callable[[MlxkError | None], None]
"""Receives None when the server is ready, or the error that prevents it."""


class Preload(threading.Thread):
    """Loads and warms up the model to preload, while probes are served already.

    Args:
        container: The use cases.
        application: Becomes ready.
        server: Names the model.
        report: Called with the outcome, unless the server stops meanwhile.
        stop: Stops the server after an error.
    """

    def __init__(
        self,
        container: Container,
        application: Application,
        server: ServerSettings,
        report: Report,
        stop: Callable[[], None],
    ) -> None:
        super().__init__(name="mlxk-preload", daemon=True)
        self.error: MlxkError | None = None
        self._container = container
        self._lifecycle = application.lifecycle
        self._server = server
        self._report = report
        self._stop_server = stop

    def run(self) -> None:
        """Load the model, then report."""
        try:
            if self._server.model is not None:
                warm_up(self._container, self._server.model, for_vectors=self._server.embed_model is not None)
        except MlxkError as error:
            if not self._lifecycle.draining:
                self.error = error
                self._report(error)
                self._stop_server()
            return
        if not self._lifecycle.draining:
            self._lifecycle.preloaded = True
            self._report(None)


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
    generate = container.use_cases.generate_text()
    options = GenerationOptions(GenerationSettings(max_tokens=1, temperature=0.0))
    if model.can_chat:
        for stream in generate(model.details, [Conversation.of("Hello")], options):
            stream.cancel()
    for stream in generate(model.details, ["Hello"], options):
        for event in stream:
            if isinstance(event, Finished):
                break


def _embed_word(container: Container, model: ServedModel) -> None:
    container.use_cases.embed_text()(model.description, ("Hello",), EmbeddingSettings())


def _transcribe_silence(container: Container, model: ServedModel) -> None:
    with tempfile.TemporaryDirectory(prefix="mlxk-") as folder:
        path = os.path.join(folder, "silence.wav")
        with wave.open(path, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(_RATE)
            file.writeframes(bytes(2 * _FRAMES))
        events = container.use_cases.transcribe_audio()(
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
