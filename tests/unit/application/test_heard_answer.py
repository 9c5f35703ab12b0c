"""A transcript as an answer: text as it is heard, one end, and nothing left running."""

import threading
from collections.abc import Generator

import pytest

from mlxk.adapters.system import SystemClock
from mlxk.application.transcript_stream import TranscriptLimits, TranscriptStream
from mlxk.domain.errors import ExecutionError, ValidationError
from mlxk.domain.generation.request import Finished, FinishReason, TextDelta
from mlxk.domain.transcription import Segment, Transcript, TranscriptEvent, TranscriptionProgress

Events = Generator[TranscriptEvent, None, None]
SEGMENTS = (Segment(" Hello there.", 0.0, 1.0, tokens=(1, 2, 3)), Segment(" Bye.", 1.0, 2.0))


def said() -> Events:
    """Hear two segments."""
    yield TranscriptionProgress(0.0, 2.0)
    for segment in SEGMENTS:
        yield TranscriptionProgress(segment.end, 2.0, (segment,))
    yield Transcript("Hello there. Bye.", 2.0, "en", SEGMENTS)


def answer(events: Events) -> tuple[TranscriptStream, threading.Event]:
    """Return an answer, and what is set when nothing more is heard."""
    ended = threading.Event()
    return TranscriptStream(events, SystemClock(), ended.set), ended


def test_what_is_heard_comes_as_text_and_then_an_end() -> None:
    stream, ended = answer(said())
    *deltas, finished = stream
    assert [delta.text for delta in deltas if isinstance(delta, TextDelta)] == ["Hello there.", " Bye."]
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.usage.completion_tokens) == (FinishReason.STOP, 4)
    assert ended.wait(60)
    assert list(stream) == []


def test_a_listener_is_told_and_may_take_without_waiting() -> None:
    stream, ended = answer(said())
    told = threading.Event()
    stream.subscribe(told.set)
    assert told.is_set()
    assert ended.wait(60)
    *_, last = stream.take()
    assert isinstance(last, Finished)
    assert stream.take() == ()


def test_a_failure_comes_after_what_was_heard_and_once() -> None:
    def broken() -> Events:
        yield TranscriptionProgress(1.0, 2.0, SEGMENTS[:1])
        raise ValidationError("the file is damaged")

    stream, ended = answer(broken())
    assert ended.wait(60)
    assert [type(event) for event in stream.take()] == [TextDelta]
    with pytest.raises(ValidationError, match="damaged"):
        stream.take()
    assert stream.take() == ()


def test_a_fault_of_ours_is_a_typed_error() -> None:
    def faulty() -> Events:
        yield TranscriptionProgress(0.0, 1.0)
        raise KeyError("secret words")

    stream, _ = answer(faulty())
    with pytest.raises(ExecutionError) as caught:
        list(stream)
    assert "secret" not in caught.value.message


def test_who_cancels_gets_an_end_and_the_recording_is_given_up() -> None:
    go_on, closed = threading.Event(), threading.Event()

    def endless() -> Events:
        try:
            while True:
                yield TranscriptionProgress(0.0, 1.0)
                go_on.wait(60)
        finally:
            closed.set()

    stream, ended = answer(endless())
    with stream:
        pass
    go_on.set()
    last = next(stream)
    assert isinstance(last, Finished)
    assert last.reason is FinishReason.CANCELLED
    assert closed.wait(60)
    assert ended.wait(60)


def test_a_recording_that_is_none_is_refused_at_once_and_not_in_the_stream() -> None:
    def refused() -> Events:
        raise ValidationError("no sound")
        yield

    ended = threading.Event()
    with pytest.raises(ValidationError, match="no sound"):
        TranscriptStream(refused(), SystemClock(), ended.set)
    assert not ended.is_set()


@pytest.mark.parametrize(
    ("limits", "text", "reason", "tokens"),
    [
        (TranscriptLimits(max_tokens=4), "Hello there. Bye.", FinishReason.STOP, 4),
        (TranscriptLimits(max_tokens=3), "Hello there.", FinishReason.LENGTH, 3),
        (TranscriptLimits(max_tokens=2), "", FinishReason.LENGTH, 0),
        (TranscriptLimits(stop=("there",)), "Hello ", FinishReason.STOP, 3),
        (TranscriptLimits(stop=(". B",)), "Hello there", FinishReason.STOP, 4),
        (TranscriptLimits(stop=("Bye.!",)), "Hello there. Bye.", FinishReason.STOP, 4),
        (TranscriptLimits(max_tokens=3, stop=(". B",)), "Hello there.", FinishReason.LENGTH, 3),
    ],
)
def test_an_answer_ends_at_its_limits_and_the_recording_is_given_up(
    limits: TranscriptLimits, text: str, reason: FinishReason, tokens: int
) -> None:
    events, ended = said(), threading.Event()
    *deltas, finished = TranscriptStream(events, SystemClock(), ended.set, limits)
    assert "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)) == text
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.usage.completion_tokens) == (reason, tokens)
    assert ended.wait(60)
    assert list(events) == []
