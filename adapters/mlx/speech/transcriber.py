"""The speech transcriber port on mlx-audio."""

import contextlib
import importlib.util
from collections.abc import Generator, Iterator

from mlxk.adapters.mlx.audio_file import read_audio
from mlxk.adapters.mlx.engine.model_pool import WantedModel
from mlxk.adapters.mlx.speech.speech_model import SpeechModel, sample_rate_of
from mlxk.adapters.mlx.text_generator import ModelLease, ModelLeases
from mlxk.application.ports.model_tasks import SpeechTranscriber
from mlxk.application.ports.system import EventLog
from mlxk.domain.errors import BackendNotInstalledError, MlxkError
from mlxk.domain.transcription import Transcript, TranscriptEvent, TranscriptionRequest


class MlxSpeechTranscriber(SpeechTranscriber):
    """Runs the speech models that mlx-audio supports.

    Args:
        leases: Leases the models.
        log: Receives the durations of recordings.
    """

    def __init__(self, leases: ModelLeases, log: EventLog) -> None:
        self._leases = leases
        self._log = log

    def transcribe(self, request: TranscriptionRequest) -> Generator[TranscriptEvent, None, None]:
        request.settings.validate()
        if importlib.util.find_spec("mlx_audio") is None:
            raise BackendNotInstalledError(
                "Running speech models needs mlx-audio.", hint="Install it: pip install mlx-audio"
            )
        # Not at the top: mlx-audio may be absent, and takes long to import.
        from mlxk.adapters.mlx.speech.loader import family_of, load_speech_model

        audio = read_audio(request.path, request.name, sample_rate_of(family_of(request.model)))
        with self._leases.lease(WantedModel(request.model, load=load_speech_model), SpeechModel) as lease:
            events = lease.call(lambda: lease.model.decoder.decode(audio, request.settings))
            try:
                yield from self._events(lease, events)
            finally:
                # Closing releases the generator's arrays, which belong to the owner thread.
                with contextlib.suppress(MlxkError):
                    lease.call(events.close)

    def _events(self, lease: ModelLease[SpeechModel], events: Iterator[TranscriptEvent]) -> Iterator[TranscriptEvent]:
        while (event := lease.call_in_turn(lambda: next(events, None))) is not None:
            if isinstance(event, Transcript):
                self._log.info("transcribed a recording", seconds=round(event.seconds, 2), segments=len(event.segments))
            yield event
