"""Delivery of streams: what a cancelled one shows, and what is released when a start, a write or an end fails."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import falcon
import pytest
from doubles.clock import InMemoryClock
from doubles.event_log import InMemoryEventLog
from doubles.telemetry import InMemoryTelemetry
from falcon.testing import create_environ
from process_limits import no_further_threads
from serving.parts import CHAT_MODEL, Parts
from serving.running import eventually

from mlxk.adapters.system import SystemClock
from mlxk.application.text_streams import QueuedTextStream
from mlxk.domain.errors import ExecutionError, InsufficientMemoryError, InternalError, MlxkError, ServerShutdownError
from mlxk.domain.generation.request import (
    Finished,
    FinishReason,
    GenerationEvent,
    PromptProgress,
    StreamEvent,
    TextDelta,
    Timings,
    Usage,
)
from mlxk.entrypoints.http.generation.renderer import ResponseContext
from mlxk.entrypoints.http.generation.responder import AnswerRecords, GenerationJob, GenerationResponder
from mlxk.entrypoints.http.generation.stream_dispatcher import StreamDelivery, StreamDispatcher
from mlxk.entrypoints.http.lifecycle import ConcurrencyLimit, Metrics, ServerLifecycle
from mlxk.entrypoints.http.openai.renderer import ChatRenderer
from mlxk.entrypoints.http.request_scope import Caller, Tracer
from mlxk.entrypoints.http.server.channel import ENVIRON_ON_DISCONNECT


def finished(reason: FinishReason = FinishReason.STOP) -> Finished:
    """Return the last event of a stream."""
    return Finished(reason, Usage(1, 1), Timings(0, 0, 0))


class ScriptedStream(QueuedTextStream):
    """A stream whose events are all available."""

    def __init__(self, *events: StreamEvent | MlxkError) -> None:
        super().__init__()
        self.cancelled = False
        for event in events:
            self.put(event)

    def cancel(self) -> None:
        """Record it."""
        self.cancelled = True


class RecordingWriter:
    """Records what is written; optionally fails.

    Args:
        failing: The method that raises.
    """

    def __init__(self, failing: str = "") -> None:
        self.written: list[GenerationEvent] = []
        self.progressed: list[tuple[int, int]] = []
        self.closed: Sequence[Finished] | None = None
        self.error: MlxkError | None = None
        self._failing = failing

    def open(self) -> bool:
        """Do nothing."""
        if self._failing == "open":
            raise RuntimeError("cannot be opened")
        return True

    def keep_alive(self) -> bool:
        """Do nothing."""
        if self._failing == "keep_alive":
            raise RuntimeError("cannot be kept alive")
        return True

    def progress(self, done: int, total: int) -> bool:
        """Record it."""
        self.progressed.append((done, total))
        return True

    def events(self, index: int, events: Sequence[GenerationEvent]) -> bool:
        """Record the events."""
        if self._failing == "events":
            raise RuntimeError("cannot be written")
        self.written += events
        return True

    def close(self, finished: Sequence[Finished]) -> None:
        """Record the end."""
        if self._failing == "close":
            raise RuntimeError("cannot be ended")
        self.closed = finished

    def fail(self, error: MlxkError) -> None:
        """Record the error."""
        self.error = error


class Ends:
    """Records how deliveries ended."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[FinishReason], str | None]] = []

    def __call__(self, finished: Sequence[Finished], error: MlxkError | None) -> None:
        """Record one end."""
        self.calls.append(([each.reason for each in finished], error.code if error else None))


def delivery(writer: RecordingWriter, ends: Ends, *streams: ScriptedStream) -> StreamDelivery:
    """Return a delivery that has begun."""
    made = StreamDelivery(streams, writer, ends)
    made.begin(lambda _: None)
    return made


def test_a_cancelled_stream_shows_no_last_event_and_is_counted() -> None:
    writer, ends = RecordingWriter(), Ends()
    assert delivery(writer, ends, ScriptedStream(TextDelta("a"), finished(FinishReason.CANCELLED))).move()
    assert writer.written == [TextDelta("a")]
    assert ends.calls == [([FinishReason.CANCELLED], None)]


def test_an_aborted_stream_shows_no_last_event_before_its_error() -> None:
    writer, ends = RecordingWriter(), Ends()
    stream = ScriptedStream(TextDelta("a"), finished(FinishReason.CANCELLED))
    aborted = delivery(writer, ends, stream)
    aborted.abort(ServerShutdownError("stops"))
    assert stream.cancelled
    assert aborted.move()
    assert (writer.written, writer.closed, writer.error is not None) == ([TextDelta("a")], None, True)
    assert ends.calls == [([FinishReason.CANCELLED], "server_shutdown")]


def test_the_last_event_of_a_stream_that_was_not_cancelled_is_shown() -> None:
    writer, ends = RecordingWriter(), Ends()
    assert delivery(writer, ends, ScriptedStream(finished())).move()
    assert writer.written == [finished()]
    assert writer.closed == [finished()]


def test_progress_is_that_of_all_choices_and_no_event() -> None:
    writer, ends = RecordingWriter(), Ends()
    first, second = ScriptedStream(PromptProgress(3, 10)), ScriptedStream(PromptProgress(4, 10))
    both = delivery(writer, ends, first, second)
    assert not both.move()
    first.put(PromptProgress(8, 10))
    first.put(TextDelta("a"))
    assert not both.move()
    assert writer.progressed == [(3, 10), (7, 20)]
    assert writer.written == [TextDelta("a")]


def test_an_error_of_one_choice_cancels_the_others() -> None:
    writer, ends = RecordingWriter(), Ends()
    failing, other = ScriptedStream(ExecutionError("it failed")), ScriptedStream(TextDelta("a"))
    assert delivery(writer, ends, failing, other).move()
    assert other.cancelled
    assert ends.calls == [([], "execution_error")]


@pytest.fixture
def dispatcher() -> Iterator[StreamDispatcher]:
    """A dispatcher with its thread."""
    made = StreamDispatcher(InMemoryClock(), InMemoryEventLog())
    yield made
    made.close()


@pytest.mark.parametrize("failing", ["open", "events", "close"])
def test_a_response_that_cannot_be_written_ends_once_and_stops_no_other(
    failing: str, dispatcher: StreamDispatcher
) -> None:
    broken, ends = RecordingWriter(failing), Ends()
    stream = ScriptedStream(TextDelta("a"), finished())
    dispatcher.add(StreamDelivery((stream,), broken, ends))
    sound, others = RecordingWriter(), Ends()
    dispatcher.add(StreamDelivery((ScriptedStream(TextDelta("b"), finished()),), sound, others))
    assert eventually(lambda: broken.error is not None and sound.closed is not None)
    dispatcher.close()
    assert sound.written == [TextDelta("b"), finished()]
    assert len(ends.calls) == len(others.calls) == 1
    assert stream.cancelled
    assert isinstance(broken.error, InternalError)


def test_a_response_without_a_thread_ends_and_a_later_one_is_written(dispatcher: StreamDispatcher) -> None:
    refused, served, ends = RecordingWriter(), RecordingWriter(), Ends()
    with no_further_threads():
        dispatcher.add(StreamDelivery((ScriptedStream(finished()),), refused, ends))
    assert isinstance(refused.error, InsufficientMemoryError)
    assert ends.calls == [([], "insufficient_memory")]
    dispatcher.add(StreamDelivery((ScriptedStream(finished()),), served, ends))
    assert eventually(lambda: served.closed is not None)


def test_a_stream_that_cannot_be_kept_alive_ends_and_stops_no_other() -> None:
    dispatcher = StreamDispatcher(SystemClock(), InMemoryEventLog(), keep_alive_seconds=0.01)
    broken, ends, silent = RecordingWriter("keep_alive"), Ends(), ScriptedStream()
    dispatcher.add(StreamDelivery((silent,), broken, ends))
    assert eventually(lambda: broken.error is not None)
    sound, others = RecordingWriter(), Ends()
    dispatcher.add(StreamDelivery((ScriptedStream(TextDelta("b"), finished()),), sound, others))
    assert eventually(lambda: sound.closed is not None)
    dispatcher.close()
    assert isinstance(broken.error, InternalError)
    assert silent.cancelled
    assert ends.calls == [([], "internal_error")]
    assert len(others.calls) == 1


class Setting:
    """A responder, its limit, and a request."""

    def __init__(self, dispatcher: StreamDispatcher) -> None:
        self.limit, clock = ConcurrencyLimit(4, 0), InMemoryClock()
        self._tracer = Tracer(InMemoryTelemetry(), clock)
        self.responder = GenerationResponder(
            dispatcher, ServerLifecycle(), self.limit, AnswerRecords(Metrics(), self._tracer, InMemoryEventLog()), clock
        )
        parts = Parts()
        self._model = parts.catalogue.find(CHAT_MODEL)
        parts.close()

    def respond(
        self,
        start: Callable[[Callable[[], bool]], Sequence[Any]],
        renderer: Any = ChatRenderer,
        stream: bool = True,
        **environ: Any,
    ) -> falcon.Response:
        """Respond to a request, and return the response."""
        response = falcon.Response()
        job = GenerationJob(model=self._model, model_name="m", start=start, renderer=renderer, stream=stream)
        request = falcon.Request({**create_environ(), **environ})
        request.context.caller = Caller("", is_operator=True)
        self._tracer.begin(request)
        self.responder.respond(request, response, job)
        return response


@pytest.fixture
def setting(dispatcher: StreamDispatcher) -> Setting:
    """The parts of a response."""
    return Setting(dispatcher)


def failing_renderer(context: ResponseContext) -> ChatRenderer:
    """Fail as a renderer with a fault does."""
    raise RuntimeError("cannot render")


def failing_start(is_gone: Callable[[], bool]) -> Sequence[Any]:
    """Fail as a use case does."""
    raise ExecutionError("cannot start")


def test_a_start_that_fails_releases_its_slots(setting: Setting) -> None:
    with pytest.raises(ExecutionError):
        setting.respond(failing_start)
    assert setting.limit.admitted == 0


def test_a_renderer_that_cannot_be_made_cancels_what_was_started_and_releases_its_slots(setting: Setting) -> None:
    stream = ScriptedStream()
    with pytest.raises(RuntimeError):
        setting.respond(lambda _: [stream], renderer=failing_renderer)
    assert stream.cancelled
    assert setting.limit.admitted == 0


def test_an_error_of_a_whole_response_is_raised_and_releases_its_slots(setting: Setting) -> None:
    with pytest.raises(ExecutionError):
        setting.respond(lambda _: [ScriptedStream(ExecutionError("it failed"))], stream=False)
    assert setting.limit.admitted == 0


def test_a_response_that_begins_after_the_end_of_the_server_fails_at_once() -> None:
    dispatcher = StreamDispatcher(InMemoryClock(), InMemoryEventLog())
    dispatcher.close()
    stream, writer, ends = ScriptedStream(TextDelta("a")), RecordingWriter(), Ends()
    dispatcher.add(StreamDelivery((stream,), writer, ends))
    assert isinstance(writer.error, ServerShutdownError)
    assert (stream.cancelled, writer.written, ends.calls) == (True, [], [([], "server_shutdown")])


def test_a_client_that_disconnects_before_the_streams_start_has_them_cancelled(setting: Setting) -> None:
    stream = ScriptedStream(finished(FinishReason.CANCELLED))
    setting.respond(lambda _: [stream], stream=False, **{ENVIRON_ON_DISCONNECT: lambda callback: callback()})
    assert stream.cancelled
    assert setting.limit.admitted == 0


def test_a_body_that_another_server_closes_cancels_its_stream(setting: Setting) -> None:
    stream = ScriptedStream(TextDelta("a"))
    body = setting.respond(lambda _: [stream]).stream
    assert not stream.cancelled
    body.close()
    assert stream.cancelled


def test_every_silent_stream_is_kept_alive_when_its_own_time_has_come() -> None:
    """A machine in use may be late, but not every time; what waits for another's time is late every time."""
    times: list[dict[str, float]] = []
    while len(times) < 8 and not (times and all(seconds < 1.4 for seconds in times[-1].values())):
        times.append(keep_alive_times())
        assert all(seconds >= 1.0 for seconds in times[-1].values()), times
    assert len(times) < 8, times


def keep_alive_times() -> dict[str, float]:
    """Return when each of two silent streams, half a second apart, was kept alive, which they are after a second."""
    began: dict[str, float] = {}
    kept: dict[str, float] = {}

    class Waiting(RecordingWriter):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def keep_alive(self) -> bool:
            kept.setdefault(self.name, time.monotonic() - began[self.name])
            return True

    dispatcher = StreamDispatcher(SystemClock(), InMemoryEventLog(), keep_alive_seconds=1.0)
    for name in ("first", "second"):
        began[name] = time.monotonic()
        dispatcher.add(StreamDelivery([ScriptedStream()], Waiting(name), Ends()))
        time.sleep(0.5)
    assert eventually(lambda: len(kept) == 2)
    dispatcher.close()
    return kept
