"""Speech as text with mlx-audio: the port, as callers see it.

Sound is decoded in the caller's thread and before the model is loaded, so that a file that is none costs nothing. The
model hears it on the owner thread, one piece at a time; between two pieces others get their turn.
"""

import contextlib
import importlib.util
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from mlxk.adapters.mlx.lending import Loan, ModelLender
from mlxk.application.ports.event_log import EventLog
from mlxk.application.ports.speech_transcriber import SpeechTranscriber
from mlxk.domain.errors import BackendNotInstalledError, MlxkError
from mlxk.domain.speech import Transcript, TranscriptEvent, TranscriptionRequest

if TYPE_CHECKING:
    from mlxk.adapters.mlx.speech.listener import SpeechModel


class MlxSpeechTranscriber(SpeechTranscriber):
    """Runs the speech models that mlx-audio knows.

    Args:
        lender: Has models in memory.
        log: Hears how long recordings took.
    """

    def __init__(self, lender: ModelLender, log: EventLog) -> None:
        self._lender = lender
        self._log = log

    def transcribe(self, request: TranscriptionRequest) -> Generator[TranscriptEvent, None, None]:
        """Listen to a recording; see the port."""
        from mlxk.adapters.mlx.residency import WantedModel
        from mlxk.adapters.mlx.speech.families import rate_of
        from mlxk.adapters.mlx.speech.listener import SpeechModel
        from mlxk.adapters.mlx.speech.loading import family_of, load_speech_model
        from mlxk.adapters.mlx.speech.sound import read_sound

        request.settings.validate()
        if importlib.util.find_spec("mlx_audio") is None:
            raise BackendNotInstalledError(
                "Running speech models needs mlx-audio.", hint="Install it: pip install mlx-audio"
            )
        sound = read_sound(request.path, request.name, rate_of(family_of(request.model)))
        with self._lender.lend(WantedModel(request.model, load=load_speech_model), SpeechModel) as loan:
            events = loan.call(lambda: loan.model.listener.listen(sound, request.settings))
            try:
                yield from self._events(loan, events)
            finally:
                # It may hold arrays, which belong to the owner thread. A closed engine has none left.
                with contextlib.suppress(MlxkError):
                    loan.call(events.close)

    def _events(self, loan: "Loan[SpeechModel]", events: Iterator[TranscriptEvent]) -> Iterator[TranscriptEvent]:
        while (event := loan.call(lambda: next(events, None))) is not None:
            if isinstance(event, Transcript):
                self._log.info("heard a recording", seconds=round(event.seconds, 2), segments=len(event.segments))
            yield event
            loan.give_way()
