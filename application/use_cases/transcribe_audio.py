"""Transcribe audio: resolve the model, judge whether it may listen, and start.

Owns the order of the checks and the policy: unlike a text model, one that listens is refused when it does not fit into
memory. How sound becomes text is the transcriber's business.
"""

from collections.abc import Generator

import attrs

from mlxk.application.policy import require_memory, require_speech_model
from mlxk.application.ports.memory_probe import MemoryProbe
from mlxk.application.ports.speech_transcriber import SpeechTranscriber
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.models.model import ModelDescription
from mlxk.domain.transcription import TranscriptEvent, TranscriptionRequest, TranscriptionSettings


@attrs.frozen
class Recording:
    """A file of sound."""

    path: str
    """Where it is, on this machine."""
    name: str
    """What the user calls it."""


@attrs.frozen
class TranscribeAudio:
    """Writes down what is said in a recording."""

    resolve: ResolveModel
    describe: DescribeModel
    transcriber: SpeechTranscriber
    memory: MemoryProbe

    def __call__(
        self, reference: str, recording: Recording, settings: TranscriptionSettings
    ) -> Generator[TranscriptEvent, None, None]:
        """Start listening; nothing is heard before the first event is asked for.

        Args:
            reference: The model, as the user typed it.
            recording: What to listen to.
            settings: How.

        Raises:
            ValidationError: A setting is out of range, or the reference is malformed.
            ModelNotFoundError, AmbiguousModelError, RevisionNotFoundError: The reference means no single model.
            UnhealthyModelError, IncompatibleModelError, CapabilityError: The model cannot do this.
            InsufficientMemoryError: It is beyond the budget.
        """
        settings.validate()
        return self.listen(self.describe(self.resolve(reference)), recording, settings)

    def listen(
        self, description: ModelDescription, recording: Recording, settings: TranscriptionSettings
    ) -> Generator[TranscriptEvent, None, None]:
        """Start listening with a model that was found already; see ``__call__``.

        Args:
            description: The model.
            recording: What to listen to.
            settings: How.
        """
        settings.validate()
        require_speech_model(description, settings.task.capability)
        require_memory(description, self.memory)
        request = TranscriptionRequest(description.handle, recording.path, recording.name, settings)
        return self.transcriber.transcribe(request)
