"""Port: speech as text."""

from abc import abstractmethod
from collections.abc import Generator
from typing import Protocol

from mlxk.domain.transcription import TranscriptEvent, TranscriptionRequest


class SpeechTranscriber(Protocol):
    """Runs speech models. Loads what a request names when it is not loaded yet."""

    @abstractmethod
    def transcribe(self, request: TranscriptionRequest) -> Generator[TranscriptEvent, None, None]:
        """Listen to a recording.

        Nothing happens before the first event is asked for. Closing the generator ends the work soon.

        Yields:
            Any number of ``Heard``, the segments of which are final, then exactly one ``Transcript``.

        Raises:
            ValidationError: A setting is out of range, or the file is missing, empty, too large, too long or no sound.
            CapabilityError: The model does not know the language, takes none, takes no hint, or cannot time words.
            BackendNotInstalledError: The package or program that is needed is not installed.
            IncompatibleModelError, UntrustedModelCodeError, UnhealthyModelError: The model cannot be loaded.
            ExecutionError: Loading or listening failed for a reason of its own.
        """
