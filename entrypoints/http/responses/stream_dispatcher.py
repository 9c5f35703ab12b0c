"""One thread that moves the events of all answers from the engine to their clients.

The engine only says that there is something to take; taking, encoding and sending happen here, so that clients cost the
engine next to nothing, and hundreds of streams need no thread each.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from mlxk.application.ports.clock import Clock
from mlxk.application.ports.event_log import EventLog
from mlxk.application.ports.text_generator import TextStream
from mlxk.domain.errors import InternalError, MlxkError, ServerShutdownError
from mlxk.domain.generation.request import Finished, FinishReason, GenerationEvent

PING_SECONDS = 10.0
"""Silence after which a stream gets a sign of life."""


class Writer(Protocol):
    """What becomes of the events; see ``event_stream`` and ``batch``."""

    def open(self) -> bool:
        """Begin; return False when the client has gone. So do ``ping`` and ``events``."""

    def ping(self) -> bool:
        """Show a sign of life."""

    def events(self, index: int, events: Sequence[GenerationEvent]) -> bool:
        """Take what came for a choice."""

    def close(self, finished: Sequence[Finished]) -> None:
        """End well."""

    def fail(self, error: MlxkError) -> None:
        """End with an error."""


class StreamDelivery:
    """One answer on its way to its client.

    Args:
        streams: One a choice.
        writer: Where they go.
        on_end: Called once at the end, with how each choice ended or with the error.
    """

    def __init__(
        self,
        streams: Sequence[TextStream],
        writer: Writer,
        on_end: Callable[[Sequence[Finished], MlxkError | None], None],
    ) -> None:
        self.pending = False
        self.last_write_at = 0.0
        self._streams = streams
        self._writer = writer
        self._on_end = on_end
        self._finished: dict[int, Finished] = {}
        self._ended = False
        self._aborted: MlxkError | None = None

    def listen(self, wake: Callable[["StreamDelivery"], None]) -> None:
        """Begin, and have a function called whenever there is something to move."""
        self._go_on(self._writer.open())
        for stream in self._streams:
            stream.listen(lambda: wake(self))

    def cancel(self) -> None:
        """Ask the engine for no more. Callable from any thread."""
        for stream in self._streams:
            stream.cancel()

    def abort(self, error: MlxkError) -> None:
        """End with an error as soon as the engine has let go. Callable from any thread."""
        self._aborted = error
        self.cancel()

    def move(self) -> bool:
        """Move what has come; return whether the answer has ended."""
        if self._ended:
            return True
        try:
            for index, stream in enumerate(self._streams):
                while events := stream.take():
                    self._take(index, events)
        except MlxkError as error:
            self.cancel()
            return self._end(self._aborted or error)
        if len(self._finished) < len(self._streams):
            return False
        return self._end(self._aborted)

    def ping(self) -> None:
        """Show the client a sign of life."""
        self._go_on(self._writer.ping())

    def fail(self, error: MlxkError) -> None:
        """End at once, with a fault of ours; does nothing when it has ended."""
        self.cancel()
        if not self._ended:
            self._end(error)

    def _take(self, index: int, events: Sequence[GenerationEvent]) -> None:
        last = events[-1]
        if isinstance(last, Finished):
            self._finished[index] = last
            if last.reason is FinishReason.CANCELLED:
                events = events[:-1]
        if events:
            self._go_on(self._writer.events(index, events))

    def _go_on(self, listening: bool) -> None:
        if not listening:
            self.cancel()

    def _end(self, error: MlxkError | None) -> bool:
        self._ended = True
        finished = [self._finished[index] for index in sorted(self._finished)]
        try:
            if error is None:
                self._writer.close(finished)
            else:
                self._writer.fail(error)
        finally:
            self._on_end(finished, error)
        return True


class StreamDispatcher:
    """The thread. Started by the first answer; ``close`` ends every answer and joins it."""

    def __init__(self, clock: Clock, log: EventLog, ping_seconds: float = PING_SECONDS) -> None:
        self._clock = clock
        self._log = log
        self._ping_seconds = ping_seconds
        self._ready: queue.SimpleQueue[StreamDelivery | None] = queue.SimpleQueue()
        self._deliveries: set[StreamDelivery] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._aborting = False
        self._closed = False

    def add(self, delivery: StreamDelivery) -> None:
        """Deliver an answer from now on."""
        with self._lock:
            if self._closed:
                delivery.fail(ServerShutdownError("The server is shutting down."))
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="mlxk-pump", daemon=True)
                self._thread.start()
            delivery.last_write_at = self._clock.monotonic()
            self._deliveries.add(delivery)
            aborting = self._aborting
        if aborting:  # its answer was submitted before the end was decided, and nobody has told it yet
            delivery.abort(_going_down())
        delivery.listen(self._wake)

    def abort(self) -> None:
        """End every answer, also those still to be added, with the news that the server goes down."""
        with self._lock:
            self._aborting = True
            deliveries = list(self._deliveries)
        for delivery in deliveries:
            delivery.abort(_going_down())

    def close(self) -> None:
        """End every answer and the thread. May be called twice."""
        self.abort()
        with self._lock:
            self._closed, thread = True, self._thread
        self._ready.put(None)
        if thread is not None:
            thread.join()

    def _wake(self, delivery: StreamDelivery) -> None:
        if not delivery.pending:
            delivery.pending = True
            self._ready.put(delivery)

    def _run(self) -> None:
        ping_at = self._clock.monotonic() + self._ping_seconds
        while True:
            try:
                delivery = self._ready.get(timeout=max(0.0, ping_at - self._clock.monotonic()))
                if delivery is None:
                    break
                self._move(delivery)
            except queue.Empty:
                pass
            if self._clock.monotonic() >= ping_at:
                ping_at = self._ping()
        for delivery in list(self._deliveries):
            delivery.fail(ServerShutdownError("The server is shutting down."))

    def _move(self, delivery: StreamDelivery) -> None:
        delivery.pending = False
        delivery.last_write_at = self._clock.monotonic()
        try:
            ended = delivery.move()
        except Exception as fault:  # noqa: BLE001 - a door: one answer's fault must not stop the others
            self._log.error("an answer could not be delivered", error=type(fault).__name__)
            delivery.fail(InternalError("The answer could not be delivered."))
            ended = True
        if ended:
            with self._lock:
                self._deliveries.discard(delivery)

    def _ping(self) -> float:
        """Show a sign of life to everyone who waited long enough; return when to look again."""
        now = self._clock.monotonic()
        with self._lock:
            deliveries = list(self._deliveries)
        for delivery in deliveries:
            if now - delivery.last_write_at >= self._ping_seconds:
                delivery.last_write_at = now
                delivery.ping()
        return min([now, *(each.last_write_at for each in deliveries)]) + self._ping_seconds


def _going_down() -> ServerShutdownError:
    return ServerShutdownError("The server is shutting down.", hint="Send the request again.")
