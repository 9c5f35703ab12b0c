"""Port: transcription of speech."""

from abc import abstractmethod
from collections.abc import Generator
from typing import Protocol

from mlxk.domain.transcription import TranscriptEvent, TranscriptionRequest


class SpeechTranscriber(Protocol):
    """Runs speech models, loading them on request."""

    @abstractmethod
    def transcribe(self, request: TranscriptionRequest) -> Generator[TranscriptEvent, None, None]:
        """Transcribe a recording.

        Work starts with the first event that is requested. Closing the generator stops it.

        Yields:
            Any number of ``TranscriptionProgress``, the segments of which are final, then exactly one ``Transcript``.

        Raises:
            ValidationError: A setting is out of range, or the file is missing, empty, too large, too long or not audio.
            CapabilityError: The model does not support the language, a language option, a prompt, or word timestamps.
            BackendNotInstalledError: The package or program that is needed is not installed.
            IncompatibleModelError, UntrustedModelCodeError, UnhealthyModelError: The model cannot be loaded.
            ExecutionError: Loading or transcribing failed for another reason.
        """
