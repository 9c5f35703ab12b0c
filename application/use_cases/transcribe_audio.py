"""Transcribe audio: resolve, probe, policy, load, run.

Unlike a text model, a speech model beyond the memory budget is refused.
"""

from collections.abc import Generator

import attrs

from mlxk.application.incoming_message import Recording
from mlxk.application.policy import require_memory, require_speech_model
from mlxk.application.ports.model_tasks import SpeechTranscriber
from mlxk.application.ports.system import MemoryProbe
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.models.model import ModelDescription
from mlxk.domain.transcription import TranscriptEvent, TranscriptionRequest, TranscriptionSettings


@attrs.frozen
class TranscribeAudio:
    """Transcribes recordings."""

    resolve: ResolveModel
    describe: DescribeModel
    transcriber: SpeechTranscriber
    memory: MemoryProbe

    def __call__(
        self, model: str | ModelDescription, recording: Recording, settings: TranscriptionSettings
    ) -> Generator[TranscriptEvent, None, None]:
        """Start a transcription; nothing is computed before the first event is read.

        Args:
            model: A reference, as the user typed it; or the description of a model that is resolved.
            recording: The audio file.
            settings: How to transcribe.

        Raises:
            ValidationError: A setting is out of range, or the reference is malformed.
            ModelNotFoundError, AmbiguousModelError, RevisionNotFoundError: The reference means no single model.
            UnhealthyModelError, IncompatibleModelError, CapabilityError: The model cannot do this.
            InsufficientMemoryError: It is beyond the budget.
        """
        settings.validate()
        description = self.describe(self.resolve(model)) if isinstance(model, str) else model
        require_speech_model(description, settings.task.capability)
        require_memory(description, self.memory)
        request = TranscriptionRequest(description.handle, recording.path, recording.name, settings)
        return self.transcriber.transcribe(request)
