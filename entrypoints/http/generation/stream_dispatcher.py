"""The stream dispatcher: one thread that moves the events of all responses from the engine to their clients.

The engine only calls back when events are available. They are read, rendered and sent here, so that slow clients do not
slow the engine and hundreds of streams share one thread.
"""

import contextlib
import functools
import queue
import threading
from collections.abc import Callable, Sequence

import attrs

from mlxk.application.ports.system import Clock, EventLog
from mlxk.application.ports.text_generator import TextStream
from mlxk.domain.errors import InsufficientMemoryError, InternalError, MlxkError, ServerShutdownError
from mlxk.domain.generation.request import Finished, FinishReason, GenerationEvent, PromptProgress, StreamEvent
from mlxk.entrypoints.http.errors import raised_at
from mlxk.entrypoints.http.generation.renderer import ResponseWriter

KEEP_ALIVE_SECONDS = 10.0
"""Silence after which a stream gets a keep-alive frame."""


class StreamDelivery:
    """Moves the events of one response from its streams to its writer.

    Args:
        streams: One for each choice.
        writer: Receives the events.
        on_end: Called once at the end with the last event of each choice, and the error or None.
    """

    def __init__(
        self,
        streams: Sequence[TextStream],
        writer: ResponseWriter,
        on_end: Callable[[Sequence[Finished], MlxkError | None], None],
    ) -> None:
        self.pending = False
        self.last_write_at = 0.0
        self._streams = streams
        self._writer = writer
        self._on_end = on_end
        self._finished: dict[int, Finished] = {}
        self._progress: dict[int, PromptProgress] = {}
        """Latest progress of each choice whose prompt takes long."""
        self._ended = False
        self._aborted: MlxkError | None = None

    def begin(self, wake: Callable[["StreamDelivery"], None]) -> None:
        """Open the writer, and have ``wake`` called whenever events are available."""
        self._cancel_unless(self._writer.open())
        for stream in self._streams:
            stream.subscribe(lambda: wake(self))

    def cancel(self) -> None:
        """Cancel every stream. Callable from any thread."""
        for stream in self._streams:
            stream.cancel()

    def abort(self, error: MlxkError) -> None:
        """Cancel every stream, and end with an error when all have finished. Callable from any thread."""
        self._aborted = error
        self.cancel()

    def move(self) -> bool:
        """Write the available events; return whether the response has ended."""
        if self._ended:
            return True
        try:
            for index, stream in enumerate(self._streams):
                while events := stream.take():
                    self._write(index, events)
        except MlxkError as error:
            self.cancel()
            return self._end(self._aborted or error)
        if len(self._finished) < len(self._streams):
            return False
        return self._end(self._aborted)

    def keep_alive(self) -> None:
        """Send a keep-alive frame."""
        self._cancel_unless(self._writer.keep_alive())

    def fail(self, error: MlxkError) -> None:
        """End at once with an error; does nothing after the end."""
        self.cancel()
        if not self._ended:
            self._end(error)

    def give_up(self, error: MlxkError) -> None:
        """End with an error after the writer raised, even if it raised while ending the response."""
        self.cancel()
        if self._ended:
            self._writer.fail(error)
        else:
            self._end(error)

    def _write(self, index: int, stream_events: Sequence[StreamEvent]) -> None:
        """Write events of a choice: progress if there is nothing else; never the ``Finished`` of a cancelled stream."""
        events: list[GenerationEvent] = []
        for event in stream_events:
            if isinstance(event, PromptProgress):
                self._progress[index] = event
            else:
                events.append(event)
        if not events:
            done, total = map(sum, zip(*map(attrs.astuple, self._progress.values()), strict=True))
            self._cancel_unless(self._writer.progress(done, total))
            return
        last = events[-1]
        if isinstance(last, Finished):
            self._finished[index] = last
            if last.reason is FinishReason.CANCELLED:
                events.pop()
        if events:
            self._cancel_unless(self._writer.events(index, events))

    def _cancel_unless(self, connected: bool) -> None:
        if not connected:
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
    """Runs the thread, which the first response starts; ``close`` ends every response and joins the thread.

    Args:
        clock: Measures silence.
        log: Receives delivery failures.
        keep_alive_seconds: Silence after which a stream gets a keep-alive frame.
    """

    def __init__(self, clock: Clock, log: EventLog, keep_alive_seconds: float = KEEP_ALIVE_SECONDS) -> None:
        self._clock = clock
        self._log = log
        self._keep_alive_seconds = keep_alive_seconds
        self._ready: queue.SimpleQueue[StreamDelivery | None] = queue.SimpleQueue()
        self._deliveries: set[StreamDelivery] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._aborting = False
        self._closed = False

    def add(self, delivery: StreamDelivery) -> None:
        """Start the delivery of a response; fails it when the dispatcher is closed or has no thread."""
        with self._lock:
            if self._closed:
                delivery.fail(ServerShutdownError("The server is shutting down."))
                return
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="mlxk-streams", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # out of threads; a later response tries again
                    delivery.fail(InsufficientMemoryError("The server may start no further thread."))
                    return
                self._thread = thread
            delivery.last_write_at = self._clock.monotonic()
            self._deliveries.add(delivery)
            aborting = self._aborting
        if aborting:  # started before ``abort``, added after it
            delivery.abort(_shutting_down())
        self._step(delivery, functools.partial(delivery.begin, self._wake))

    def abort(self) -> None:
        """End every response with ``ServerShutdownError``, including those added later."""
        with self._lock:
            self._aborting = True
            deliveries = list(self._deliveries)
        for delivery in deliveries:
            delivery.abort(_shutting_down())

    def close(self) -> None:
        """End every response and join the thread. May be called twice."""
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
        due = self._clock.monotonic() + self._keep_alive_seconds
        while True:
            try:
                delivery = self._ready.get(timeout=max(0.0, due - self._clock.monotonic()))
                if delivery is None:
                    break
                self._move(delivery)
            except queue.Empty:
                pass
            if self._clock.monotonic() >= due:
                due = self._keep_alive()
        for delivery in list(self._deliveries):
            delivery.fail(ServerShutdownError("The server is shutting down."))

    def _move(self, delivery: StreamDelivery) -> None:
        delivery.pending = False
        delivery.last_write_at = self._clock.monotonic()
        self._step(delivery, delivery.move)

    def _step(self, delivery: StreamDelivery, step: Callable[[], bool | None]) -> None:
        """Run a step of a delivery, and remove the delivery if it has ended: if ``step`` returns True or raises."""
        try:
            ended = step()
        except Exception as fault:  # noqa: BLE001 - a failing response must not stop the others
            where = raised_at(fault.__traceback__)
            self._log.error("a response could not be delivered", error=type(fault).__name__, where=where)
            with contextlib.suppress(Exception):  # the body is ended in any case
                delivery.give_up(InternalError("The answer could not be delivered."))
            ended = True
        if ended:
            with self._lock:
                self._deliveries.discard(delivery)

    def _keep_alive(self) -> float:
        """Send the keep-alive frames that are due; return the time of the next one."""
        now = self._clock.monotonic()
        with self._lock:
            deliveries = list(self._deliveries)
        for delivery in deliveries:
            if now - delivery.last_write_at >= self._keep_alive_seconds:
                delivery.last_write_at = now
                self._step(delivery, delivery.keep_alive)
        return min([now, *(delivery.last_write_at for delivery in deliveries)]) + self._keep_alive_seconds


def _shutting_down() -> ServerShutdownError:
    return ServerShutdownError("The server is shutting down.", hint="Send the request again.")
