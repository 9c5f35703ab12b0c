"""Ask about a recording: have a model that writes text and takes sound beside it hear a file, and answer.

Owns the order: the model is judged, then the file is decoded and measured, and only then is anything loaded. Models
that listen and do nothing else are ``TranscribeAudio``'s.
"""

import attrs

from mlxk.application.policy import require_audio_input, require_text_model
from mlxk.application.ports.audio_decoder import AudioDecoder
from mlxk.application.ports.text_generator import TextStream
from mlxk.application.use_cases.generate_text import GenerateText, Question
from mlxk.application.use_cases.transcribe_audio import Recording
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.media import check_audio_length
from mlxk.domain.models.model import Capability, ModelDescription


@attrs.frozen
class AskAboutRecording:
    """Answers a prompt about a recording."""

    generate: GenerateText
    decoder: AudioDecoder

    def takes(self, reference: str) -> bool:
        """Whether a model writes text about sound, instead of writing down what is said.

        Args:
            reference: The model, as the user typed it.

        Raises:
            ModelNotFoundError, AmbiguousModelError, RevisionNotFoundError: The reference means no single model.
        """
        return writes_about_sound(self.generate.describe(self.generate.resolve(reference)))

    def __call__(self, reference: str, recording: Recording, question: Question) -> TextStream:
        """Play a recording in the last turn of a conversation, and start the answer.

        Args:
            reference: The model, as the user typed it.
            recording: What to play.
            question: What to ask, which must be a conversation, and how.

        Raises:
            ValidationError: A setting is out of range, or the file is missing, no sound, or longer than half a minute.
            CapabilityError, UnhealthyModelError, IncompatibleModelError: The model takes no sound, or does not run.
            MlxkError: See ``GenerateText`` and ``AudioDecoder``.
        """
        question.settings.validate()
        if not isinstance(question.prompt, Conversation):
            raise ValidationError("A recording is played in a conversation, not in a bare prompt.")
        description = self.generate.describe(self.generate.resolve(reference))
        require_text_model(description)
        require_audio_input(description)
        sound = self.decoder.decode(recording.path, recording.name)
        check_audio_length(sound, recording.name)
        return self.generate.start(description, attrs.evolve(question, prompt=question.prompt.playing(sound)))


def writes_about_sound(description: ModelDescription) -> bool:
    """Whether a model writes text about sound, instead of writing down what is said."""
    return description.can(Capability.TEXT_GENERATION) and description.can(Capability.AUDIO)
