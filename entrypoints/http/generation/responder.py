"""The generation responder: admits a request, starts its streams, and delivers, counts and logs the response.

It knows no API: the resource passes a job that starts the streams and builds the renderer.
"""

from collections.abc import Callable, Iterable, Sequence

import attrs
import falcon

from mlxk.application.generation_input import GenerationOptions
from mlxk.application.ports.system import Clock, EventLog
from mlxk.application.ports.text_generator import TextStream
from mlxk.domain.errors import MlxkError
from mlxk.domain.generation.conversation import Adaptation
from mlxk.domain.generation.request import Finished
from mlxk.domain.models.model import ServedModel
from mlxk.entrypoints.http.generation.renderer import (
    QueuedBody,
    RendererFactory,
    ResponseBody,
    ResponseContext,
    ResponseRenderer,
    StreamWriter,
    WholeWriter,
)
from mlxk.entrypoints.http.generation.stream_dispatcher import StreamDelivery, StreamDispatcher
from mlxk.entrypoints.http.lifecycle import ConcurrencyLimit, Metrics, ServerLifecycle, api_of
from mlxk.entrypoints.http.request_scope import Tracer, caller_of, request_id, trace_of
from mlxk.entrypoints.http.server.channel import ENVIRON_DETACH, ENVIRON_ON_DISCONNECT

ADAPTATIONS = "X-Mlxk-Adaptations"
"""Response header: codes of the adaptations that fitted the conversation to the model's chat template."""


def report_adaptations(response: falcon.Response, adaptations: Iterable[Adaptation]) -> tuple[str, ...]:
    """List the codes of adaptations in a header, each once, and return them."""
    codes = tuple(dict.fromkeys(adaptation.code for adaptation in adaptations))
    if codes:
        response.set_header(ADAPTATIONS, ", ".join(codes))
    return codes


@attrs.frozen
class Client:
    """The client that waits for a response."""

    is_gone: Callable[[], bool]
    """Whether it has disconnected."""
    tenant: str
    """See ``GenerationRequest``."""

    def add_to(self, options: GenerationOptions) -> GenerationOptions:
        """Return the options with the client's disconnect check and tenant."""
        return attrs.evolve(options, is_abandoned=self.is_gone, tenant=self.tenant)


@attrs.frozen(kw_only=True)
class GenerationJob:
    """A request for generated text, independent of the API it came through."""

    model: ServedModel
    model_name: str
    """Name in the request."""
    start: Callable[[Client], Sequence[TextStream]]
    """Starts the streams, one for each choice; called once the request is admitted."""
    renderer: RendererFactory
    stream: bool
    """Whether to stream the response."""
    prompts: int = 1
    alternatives: int = 1
    """Number of completions of each prompt."""
    count_field: str = "n"
    """Field that sets the number of choices; named by the error for too many."""

    @property
    def choices(self) -> int:
        """Number of completions in the response."""
        return self.prompts * self.alternatives


@attrs.frozen
class AnswerRecords:
    """What records the end of every response."""

    metrics: Metrics
    tracer: Tracer
    log: EventLog


class GenerationResponder:
    """Responds to requests for generated text."""

    def __init__(
        self,
        dispatcher: StreamDispatcher,
        lifecycle: ServerLifecycle,
        limit: ConcurrencyLimit,
        records: AnswerRecords,
        clock: Clock,
    ) -> None:
        self._dispatcher = dispatcher
        self._lifecycle = lifecycle
        self._limit = limit
        self._metrics = records.metrics
        self._tracer = records.tracer
        self._log = records.log
        self._clock = clock

    def respond(self, request: falcon.Request, response: falcon.Response, job: GenerationJob) -> None:
        """Send the response, streamed or whole.

        Raises:
            MlxkError: The request is refused, or a whole response failed; nothing has been sent.
        """
        trace = trace_of(request)
        trace.model, trace.alternatives = job.model.id, job.alternatives
        self._lifecycle.require_open()
        release = self._limit.enter(job.choices, job.count_field)
        connection = _Connection()
        request.env.get(ENVIRON_ON_DISCONNECT, lambda _: None)(connection.disconnected)
        context = ResponseContext(
            request_id=request_id(request),
            created=self._clock.now(),
            model=job.model.id if job.model.stands_in else job.model_name,
            fingerprint=job.model.fingerprint,
            choices=job.choices,
            alternatives=job.alternatives,
        )
        trace.submitted = self._clock.monotonic()
        streams: Sequence[TextStream] = ()
        try:
            streams = job.start(Client(connection.is_gone, caller_of(request).tenant))
            prompt_tokens = sum(stream.prompt_tokens for stream in streams[:: job.alternatives])
            renderer = job.renderer(attrs.evolve(context, prompt_tokens=prompt_tokens))
        except BaseException:
            for stream in streams:
                stream.cancel()
            release()
            raise
        adaptations = report_adaptations(
            response, (adaptation for stream in streams for adaptation in stream.adaptations)
        )
        on_end = self._on_end(job, request, release, adaptations)
        if job.stream:
            self._stream(request, response, renderer, connection, streams, on_end)
            return
        writer = WholeWriter(renderer, job.choices)
        delivery = StreamDelivery(streams, writer, on_end)
        connection.attach(delivery)
        self._dispatcher.add(delivery)
        response.content_type, response.data = renderer.media_type, writer.wait()

    def _stream(
        self,
        request: falcon.Request,
        response: falcon.Response,
        renderer: ResponseRenderer,
        connection: "_Connection",
        streams: Sequence[TextStream],
        on_end: "_OnEnd",
    ) -> None:
        for name, value in renderer.stream_headers.items():
            response.set_header(name, value)
        detach: Callable[[Callable[[], None]], ResponseBody] | None = request.env.get(ENVIRON_DETACH)
        body: ResponseBody
        if detach is None:
            response.stream = body = QueuedBody(connection.disconnected)
        else:
            response.stream, body = iter(()), detach(lambda: self._dispatcher.add(delivery))
        delivery = StreamDelivery(streams, StreamWriter(renderer, body), on_end)
        connection.attach(delivery)
        if detach is None:
            self._dispatcher.add(delivery)

    def _on_end(
        self, job: GenerationJob, request: falcon.Request, release: Callable[[], None], adaptations: tuple[str, ...]
    ) -> "_OnEnd":
        began, identity, api = self._clock.monotonic(), request_id(request), api_of(request.uri_template)
        trace = trace_of(request)
        trace.ends_later = True
        self._tracer.identify(request, trace, identity)

        def on_end(finished: Sequence[Finished], error: MlxkError | None) -> None:
            release()
            self._metrics.answers(job.model.id, api, finished, error.code if error else None)
            trace.finished, trace.error = finished, error.code if error else None
            self._tracer.end(trace)
            fields = {
                "logger": "answers",
                "request_id": identity,
                "model": job.model.id,
                "stream": job.stream,
                "duration_ms": round((self._clock.monotonic() - began) * 1000, 1),
            }
            if adaptations:
                fields["adaptations"] = ",".join(adaptations)
            if error is not None:
                self._log.warning("generation failed", error=error.code, **fields)
                return
            prompts = [choice.usage for choice in finished[:: job.alternatives]]
            timings = [choice.timings for choice in finished]
            self._log.info(
                "generation finished",
                finish_reason=",".join(sorted({choice.reason.value for choice in finished})),
                prompt_tokens=sum(usage.prompt_tokens for usage in prompts),
                cached_tokens=sum(usage.cached_tokens for usage in prompts),
                completion_tokens=sum(choice.usage.completion_tokens for choice in finished),
                queue_ms=round(max(timing.queue_seconds for timing in timings) * 1000, 1),
                prompt_ms=round(max(timing.prompt_seconds for timing in timings) * 1000, 1),
                generation_ms=round(max(timing.generation_seconds for timing in timings) * 1000, 1),
                **fields,
            )

        return on_end


_OnEnd = Callable[[Sequence[Finished], MlxkError | None], None]


class _Connection:
    """Cancels the delivery when the client disconnects, even if it did so before the delivery was attached."""

    def __init__(self) -> None:
        self._delivery: StreamDelivery | None = None
        self._disconnected = False

    def is_gone(self) -> bool:
        """Whether the client has disconnected."""
        return self._disconnected

    def attach(self, delivery: StreamDelivery) -> None:
        """Set the delivery to cancel."""
        self._delivery = delivery
        self._cancel()

    def disconnected(self) -> None:
        """Callback of the disconnect, from any thread."""
        self._disconnected = True
        self._cancel()

    def _cancel(self) -> None:
        if self._disconnected and self._delivery is not None:
            self._delivery.cancel()
