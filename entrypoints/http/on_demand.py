"""What serves sound, vectors and images: imported with the first request for it.

A server that is only asked for text is more than a MiB smaller for it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import attrs
import falcon

from mlxk.application.ports.clock import Clock
from mlxk.application.ports.event_log import EventLog
from mlxk.application.use_cases.serve_catalogue import ServeCatalogue
from mlxk.entrypoints.http.lifecycle import ConcurrencyLimit, ServerLifecycle

if TYPE_CHECKING:
    from mlxk.application.ports.audio_decoder import AudioDecoder
    from mlxk.application.use_cases.embed_text import EmbedText
    from mlxk.application.use_cases.transcribe_audio import TranscribeAudio
    from mlxk.domain.generation.media import DecodedAudio
    from mlxk.entrypoints.http.resources.audio import Audio
    from mlxk.entrypoints.http.resources.embeddings import EmbeddingsResource
    from mlxk.entrypoints.http.responses.transcription_chat import TranscriptionChat


class Posted(Protocol):
    """A resource that something can be posted to."""

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer."""


class OnDemand:
    """A resource that is made with its first request.

    Args:
        make: Makes it; two requests at once may have it made twice.
    """

    def __init__(self, make: Callable[[], Posted]) -> None:
        self._make = make
        self._resource: Posted | None = None

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Pass the request on."""
        if self._resource is None:
            self._resource = self._make()
        self._resource.on_post(request, response)


@attrs.frozen
class Listening:
    """What hears recordings, in whatever they come.

    Every method imports what it needs.
    """

    transcribe: "Callable[[], TranscribeAudio]"
    sounds: "Callable[[], AudioDecoder]"
    catalogue: ServeCatalogue
    life: ServerLifecycle
    admission: ConcurrencyLimit
    clock: Clock
    log: EventLog
    max_tokens: int | None

    def transcriptions(self) -> "Audio":
        """Return what writes down recordings."""
        return self._audio("transcribe")

    def translations(self) -> "Audio":
        """Return what writes down recordings in English."""
        return self._audio("translate")

    def _audio(self, task: str) -> "Audio":
        from mlxk.domain.transcription import SpeechTask
        from mlxk.entrypoints.http.resources.audio import Audio

        return Audio(SpeechTask(task), self.transcribe(), self.catalogue, self.life, self.admission, self.log)

    def spoken(self) -> "TranscriptionChat":
        """Return what understands chats with models that only listen."""
        from mlxk.entrypoints.http.responses.transcription_chat import TranscriptionChat

        return TranscriptionChat(self.transcribe(), self.clock, self.max_tokens)

    def read(self, data: str, path: str) -> "DecodedAudio":
        """Decode the sound in a message; see ``AudioReader``."""
        from mlxk.entrypoints.http.requests.sounds import AudioReader

        return AudioReader(self.sounds())(data, path)


@attrs.frozen
class Embedding:
    """What makes vectors."""

    embed: "Callable[[], EmbedText]"
    catalogue: ServeCatalogue
    life: ServerLifecycle
    admission: ConcurrencyLimit
    always: str | None

    def __call__(self) -> "EmbeddingsResource":
        """Return what answers requests for them."""
        from mlxk.entrypoints.http.resources.embeddings import EmbeddingsResource

        return EmbeddingsResource(self.embed(), self.catalogue, self.life, self.admission, self.always)
