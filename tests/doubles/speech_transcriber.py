"""In-memory double of the speech transcriber: given transcripts, one segment at a time.

transcriber = InMemorySpeechTranscriber({"hello.wav": Transcript("Hello.", 1.0, "en", (Segment("Hello.", 0, 1),))})
*heard, transcript = transcriber.transcribe(TranscriptionRequest(handle, "/clips/hello.wav", "hello.wav"))
"""

from collections.abc import Generator, Mapping

from mlxk.application.ports.model_tasks import SpeechTranscriber
from mlxk.domain.errors import MlxkError, ValidationError
from mlxk.domain.transcription import Transcript, TranscriptEvent, TranscriptionProgress, TranscriptionRequest


class InMemorySpeechTranscriber(SpeechTranscriber):
    """Returns given transcripts.

    Args:
        transcripts: Transcript by the name of the recording.
        default: Transcript of any other recording; None refuses it.
    """

    def __init__(self, transcripts: Mapping[str, Transcript] | None = None, default: Transcript | None = None) -> None:
        self._transcripts = dict(transcripts or {})
        self._default = default
        self.requests: list[TranscriptionRequest] = []
        self.failure: MlxkError | None = None
        """Raised by every transcription."""
        self.abandoned = 0
        """Number of generators that were closed early."""

    def hear(self, transcript: Transcript) -> None:
        """Hear this in every recording from now on."""
        self._transcripts, self._default = {}, transcript

    def refuse_everything(self) -> None:
        """Refuse every recording from now on."""
        self._transcripts, self._default = {}, None

    def transcribe(self, request: TranscriptionRequest) -> Generator[TranscriptEvent, None, None]:
        request.settings.validate()
        self.requests.append(request)
        if self.failure is not None:
            raise self.failure
        transcript = self._transcripts.get(request.name, self._default)
        if transcript is None:
            raise ValidationError(f"Audio file not found: {request.name}")
        try:
            for segment in transcript.segments:
                yield TranscriptionProgress(segment.end, transcript.seconds, (segment,))
            yield transcript
        except GeneratorExit:
            self.abandoned += 1
            raise
