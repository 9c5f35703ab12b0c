"""From a request that was understood to an answer on its way: admitted, submitted, delivered, counted and logged."""

import json
import queue
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import falcon

from mlxk.application.ports.clock import Clock
from mlxk.application.ports.event_log import EventLog
from mlxk.application.ports.text_generator import TextStream
from mlxk.application.use_cases.serve_catalogue import ServedModel
from mlxk.application.use_cases.serve_text import ServeText
from mlxk.domain.errors import MlxkError
from mlxk.domain.generation.request import Finished, GenerationRequest
from mlxk.entrypoints.http.lifecycle import ConcurrencyLimit, ServerLifecycle
from mlxk.entrypoints.http.metrics import Metrics
from mlxk.entrypoints.http.request_scope import request_id
from mlxk.entrypoints.http.responses.batch import BatchAnswer
from mlxk.entrypoints.http.responses.event_stream import EventStream, ResponseBody
from mlxk.entrypoints.http.responses.response_format import AnswerIdentity, Shape
from mlxk.entrypoints.http.responses.stream_dispatcher import StreamDelivery, StreamDispatcher
from mlxk.entrypoints.http.server.detached import ENVIRON_DETACH, ENVIRON_ON_DISCONNECT

STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}


@attrs.frozen
class GenerationJob:
    """What a client asked, independent of the endpoint."""

    model: ServedModel
    model_name: str
    """As the client wrote it."""
    requests: Sequence[GenerationRequest]
    """One a prompt."""
    alternatives: int
    """Answers a prompt."""
    shape: Shape
    id_prefix: str
    stream: bool
    include_usage: bool
    extra: dict[str, object] = attrs.field(factory=dict)
    """What a batch response says besides."""
    start: Callable[[], tuple[TextStream, ...]] | None = None
    """Starts the answers in another way than text is answered, such as about images."""

    @property
    def count(self) -> int:
        """Answers altogether."""
        return len(self.requests) * self.alternatives


class QueuedBody:
    """A stream's body under a server that wants an iterator; ours takes it detached."""

    def __init__(self, on_close: Callable[[], None]) -> None:
        self._parts: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._on_close = on_close
        self._closed = False

    def write(self, data: bytes) -> bool:
        """Send some of the body."""
        self._parts.put(data)
        return not self._closed

    def finish(self) -> None:
        """End the body."""
        self._parts.put(None)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body as it comes."""
        while (part := self._parts.get()) is not None:
            yield part

    def close(self) -> None:
        """Hear that nobody listens any more."""
        self._closed = True
        self._on_close()


class GenerationResponder:
    """Answers requests for text."""

    def __init__(  # noqa: PLR0913 - each is a collaborator of its own
        self,
        serve_text: ServeText,
        pump: StreamDispatcher,
        life: ServerLifecycle,
        admission: ConcurrencyLimit,
        metrics: Metrics,
        log: EventLog,
        clock: Clock,
    ) -> None:
        self._serve_text = serve_text
        self._pump = pump
        self._life = life
        self._admission = admission
        self._metrics = metrics
        self._log = log
        self._clock = clock

    def answer(self, request: falcon.Request, response: falcon.Response, asked: GenerationJob) -> None:
        """Answer, as a stream or in one piece.

        Raises:
            MlxkError: The request cannot be answered; nothing has been sent yet.
        """
        self._life.require_open()
        leave = self._admission.enter(asked.count, "n" if asked.alternatives > 1 else "prompt")
        client = _Client()
        request.env.get(ENVIRON_ON_DISCONNECT, lambda _: None)(client.went)
        try:
            if asked.start is not None:
                streams = asked.start()
            else:
                streams = self._serve_text(asked.model, asked.requests, asked.alternatives)
        except BaseException:
            leave()
            raise
        identity = AnswerIdentity(
            id=f"{asked.id_prefix}-{uuid.uuid4().hex}",
            created=int(self._clock.now().timestamp()),
            model=asked.model_name,
            fingerprint=asked.model.fingerprint,
            request_id=request_id(request),
        )
        on_end = self._on_end(asked, identity.request_id, leave)
        if asked.stream:
            self._stream(
                request, response, asked, identity, client, lambda writer: StreamDelivery(streams, writer, on_end)
            )
            return
        batch = BatchAnswer(identity, asked.shape, asked.count, asked.alternatives)
        client.delivery = delivery = StreamDelivery(streams, batch, on_end)
        self._pump.add(delivery)
        client.catch_up()
        document = {**batch.wait(), **asked.extra}
        response.content_type = "application/json"
        response.data = json.dumps(document, ensure_ascii=False).encode()

    def _stream(
        self,
        request: falcon.Request,
        response: falcon.Response,
        asked: GenerationJob,
        identity: AnswerIdentity,
        client: "_Client",
        deliver: Callable[[EventStream], StreamDelivery],
    ) -> None:
        detach: Callable[[Callable[[], None]], ResponseBody] | None = request.env.get(ENVIRON_DETACH)
        body: Any = QueuedBody(client.went) if detach is None else detach(lambda: self._pump.add(delivery))
        writer = EventStream(identity, asked.shape, asked.count, asked.alternatives, asked.include_usage, body)
        client.delivery = delivery = deliver(writer)
        client.catch_up()
        for name, value in STREAM_HEADERS.items():
            response.set_header(name, value)
        if detach is None:
            self._pump.add(delivery)
            response.stream = body
        else:
            response.stream = iter(())

    def _on_end(
        self, asked: GenerationJob, request_id: str, leave: Callable[[], None]
    ) -> Callable[[Sequence[Finished], MlxkError | None], None]:
        began = self._clock.monotonic()

        def on_end(finished: Sequence[Finished], error: MlxkError | None) -> None:
            leave()
            self._metrics.answers(finished, error.code if error else None)
            common = {
                "logger": "answers",
                "request_id": request_id,
                "model": asked.model.id,
                "stream": asked.stream,
                "duration_ms": round((self._clock.monotonic() - began) * 1000, 1),
            }
            if error is not None:
                self._log.warning("generation failed", error=error.code, **common)
                return
            timings = [each.timings for each in finished]
            self._log.info(
                "generation finished",
                finish_reason=",".join(sorted({each.reason.value for each in finished})),
                prompt_tokens=sum(each.usage.prompt_tokens for each in finished[:: asked.alternatives]),
                cached_tokens=sum(each.usage.cached_tokens for each in finished[:: asked.alternatives]),
                completion_tokens=sum(each.usage.completion_tokens for each in finished),
                queue_ms=round(max(each.queue_seconds for each in timings) * 1000, 1),
                prompt_ms=round(max(each.prompt_seconds for each in timings) * 1000, 1),
                generation_ms=round(max(each.generation_seconds for each in timings) * 1000, 1),
                **common,
            )

        return on_end


class _Client:
    """Who asked: may go at any moment, also before there is an answer to cancel."""

    def __init__(self) -> None:
        self.delivery: StreamDelivery | None = None
        self._gone = False

    def went(self) -> None:
        """Hear that the client has gone."""
        self._gone = True
        self.catch_up()

    def catch_up(self) -> None:
        """Cancel the answer of a client that has gone."""
        if self._gone and self.delivery is not None:
            self.delivery.cancel()
