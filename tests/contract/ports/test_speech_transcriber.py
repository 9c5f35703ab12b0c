"""The contract of the speech transcriber, held by every adapter."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.event_log import InMemoryEventLog
from doubles.speech_transcriber import InMemorySpeechTranscriber
from models.tiny_speech import build_whisper, murmur, write_wav

from mlxk.adapters.mlx.speech.transcriber import MlxSpeechTranscriber
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.application.ports.model_tasks import SpeechTranscriber
from mlxk.domain.errors import MlxkError, ValidationError
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.domain.transcription import (
    Segment,
    Transcript,
    TranscriptEvent,
    TranscriptionProgress,
    TranscriptionRequest,
    TranscriptionSettings,
)

SECONDS = 33.0


class Case:
    """A transcriber, a model, and a recording of more than one window."""

    def __init__(self, transcriber: SpeechTranscriber, model: ModelHandle, path: Path) -> None:
        self.transcriber = transcriber
        self.request = TranscriptionRequest(model, str(path), path.name)
        self.missing = TranscriptionRequest(model, str(path.parent / "nowhere.wav"), "nowhere.wav")

    def events(self, **settings: object) -> list[TranscriptEvent]:
        """Return everything that is yielded."""
        wanted = TranscriptionSettings(**settings)  # type: ignore[arg-type]
        return list(
            self.transcriber.transcribe(
                TranscriptionRequest(self.request.model, self.request.path, self.request.name, wanted)
            )
        )


@pytest.fixture(params=["mlx", "in_memory"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    """Return each adapter with something to hear."""
    path = write_wav(tmp_path / "murmur.wav", murmur(SECONDS))
    if request.param == "in_memory":
        segments = (Segment(" One.", 0.0, 20.0), Segment(" Two.", 20.0, 33.0))
        transcriber = InMemorySpeechTranscriber({"murmur.wav": Transcript("One. Two.", SECONDS, "en", segments)})
        yield Case(transcriber, ModelHandle("org/whisper", "/cache/whisper", Origin.CACHE), path)
        return
    log = InMemoryEventLog()
    generator = MlxTextGenerator(log, SystemClock())
    yield Case(MlxSpeechTranscriber(generator.leases, log), build_whisper(tmp_path / "whisper"), path)
    generator.close()


def test_reports_come_first_and_the_transcript_comes_last_and_once(case: Case) -> None:
    *heard, transcript = case.events()
    assert isinstance(transcript, Transcript)
    assert all(isinstance(event, TranscriptionProgress) for event in heard)
    assert heard


def test_progress_never_falls_and_stays_within_the_recording(case: Case) -> None:
    heard = [event for event in case.events() if isinstance(event, TranscriptionProgress)]
    done = [event.done_seconds for event in heard]
    assert done == sorted(done)
    assert all(0 <= event.done_seconds <= event.total_seconds for event in heard)
    assert all(math.isclose(event.total_seconds, SECONDS, abs_tol=0.01) for event in heard)


def test_the_reported_segments_are_those_of_the_transcript_and_make_up_its_text(case: Case) -> None:
    *heard, transcript = case.events()
    assert isinstance(transcript, Transcript)
    reported = [segment for event in heard if isinstance(event, TranscriptionProgress) for segment in event.segments]
    assert tuple(reported) == transcript.segments
    assert "".join(segment.text for segment in reported).strip() == transcript.text


def test_segments_hold_finite_numbers_and_end_no_earlier_than_they_begin(case: Case) -> None:
    transcript = case.events()[-1]
    assert isinstance(transcript, Transcript)
    assert transcript.segments
    for segment in transcript.segments:
        numbers = (segment.start, segment.end, segment.mean_logprob, segment.compression_ratio)
        assert all(math.isfinite(number) for number in numbers if number is not None)
        assert segment.start <= segment.end


def test_the_same_recording_gives_the_same_transcript(case: Case) -> None:
    assert case.events()[-1] == case.events()[-1]


def test_a_recording_may_be_given_up_and_another_one_heard(case: Case) -> None:
    events = case.transcriber.transcribe(case.request)
    next(events)
    events.close()
    assert isinstance(case.events()[-1], Transcript)


def test_a_setting_out_of_range_is_refused(case: Case) -> None:
    with pytest.raises(ValidationError, match="temperature"):
        case.events(temperature=5.0)


def test_a_missing_file_is_refused_by_the_name_the_user_knows(case: Case) -> None:
    with pytest.raises(MlxkError, match=r"Audio file not found: nowhere\.wav"):
        list(case.transcriber.transcribe(case.missing))
