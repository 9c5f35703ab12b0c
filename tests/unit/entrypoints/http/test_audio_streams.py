"""Streamed speech and transcripts: where they end early, what their client is told, and what is released."""

from collections.abc import Callable, Generator, Iterator

import pytest
from doubles.clock import InMemoryClock
from doubles.event_log import InMemoryEventLog, LoggedEvent
from doubles.telemetry import InMemoryTelemetry

from mlxk.domain.errors import ExecutionError, MlxkError, ServerShutdownError
from mlxk.entrypoints.http.lifecycle import ServerLifecycle
from mlxk.entrypoints.http.openai.audio.events import ServedEvents, StreamedBody
from mlxk.entrypoints.http.request_scope import Trace, Tracer


def counted(closed: list[str]) -> Generator[int, None, None]:
    """Yield numbers, and record when it is closed."""
    try:
        yield from range(10)
    finally:
        closed.append("events")


def interrupted(interrupt: Callable[[ServedEvents[int], ServerLifecycle], None]) -> tuple[MlxkError, list[int]]:
    """Return the error of events that are interrupted after the second, and those that were seen."""
    released: list[str] = []
    seen: list[int] = []
    noticed: list[int] = []
    lifecycle = ServerLifecycle()
    releases = (lambda: released.append("slot"), lambda: released.append("upload"))
    events = ServedEvents(counted(released), lifecycle, releases, noticed.append)
    events.begin()
    with pytest.raises(MlxkError) as caught:
        for event in events:
            seen.append(event)
            if event == 1:
                interrupt(events, lifecycle)
    events.close()
    assert (noticed, released) == (seen, ["events", "slot", "upload"])
    return caught.value, seen


def test_a_server_that_stops_ends_what_is_heard_or_spoken_and_says_so() -> None:
    error, seen = interrupted(lambda _, lifecycle: setattr(lifecycle, "aborted", True))
    assert (type(error), error.message, error.hint, seen) == (
        ServerShutdownError,
        "The server is shutting down.",
        "Send the request again.",
        [0, 1],
    )


def test_a_client_that_has_gone_ends_what_is_heard_or_spoken() -> None:
    error, seen = interrupted(lambda events, _: events.disconnected())
    assert (type(error), error.message, seen) == (ExecutionError, "The client has gone.", [0, 1])


def failing(error: Exception) -> Iterator[bytes]:
    """Yield a frame, then fail."""
    yield b"first"
    raise error


@pytest.mark.parametrize(
    ("error", "told", "logged"),
    [
        (ExecutionError("The model failed."), "execution_error: The model failed.", []),
        (
            RuntimeError("secret"),
            "internal_error: The answer could not be delivered.",
            [LoggedEvent("error", "a streamed answer could not be delivered", {"error": "RuntimeError"})],
        ),
    ],
)
@pytest.mark.parametrize("has_events", [True, False])
def test_a_stream_that_fails_ends_with_an_event_or_breaks_off(
    error: Exception, told: str, logged: list[LoggedEvent], has_events: bool
) -> None:
    log, clock, telemetry = InMemoryEventLog(), InMemoryClock(), InMemoryTelemetry()
    trace = Trace(began=clock.monotonic())
    closed: list[str] = []

    def event_of(error: MlxkError) -> bytes:
        return f"{error.code}: {error.message}".encode()

    tracer, event = Tracer(telemetry, clock), event_of if has_events else None
    body = StreamedBody(failing(error), lambda: closed.append("request"), event, log, trace, tracer)
    frames = iter(body)
    assert next(frames) == b"first"
    if has_events:
        assert list(frames) == [told.encode()]
    else:
        with pytest.raises(MlxkError, match=told.partition(": ")[2]):
            next(frames)
    body.close()
    assert (closed, log.events) == (["request"], logged)
    assert [served.error for served in telemetry.served] == [told.partition(":")[0]]
