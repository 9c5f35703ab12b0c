"""The generation responder: admits a request, starts its streams, and delivers, counts and logs the response.

It is independent of the API: the resource passes the streams and the renderer.
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
"""Response header: how the conversation was fitted to the model's chat template, by the codes of the adaptations."""


def report_adaptations(response: falcon.Response, found: Iterable[Adaptation]) -> tuple[str, ...]:
    """List in a header how a conversation was fitted to the template, each code once; return the codes."""
    codes = tuple(dict.fromkeys(each.code for each in found))
    if codes:
        response.set_header(ADAPTATIONS, ", ".join(codes))
    return codes


@attrs.frozen
class Client:
    """Who waits for the completions of a job."""

    is_gone: Callable[[], bool]
    """Whether it has disconnected."""
    tenant: str
    """See ``GenerationRequest``."""

    def asking(self, options: GenerationOptions) -> GenerationOptions:
        """Return options for completions for this client."""
        return attrs.evolve(options, is_abandoned=self.is_gone, tenant=self.tenant)


@attrs.frozen(kw_only=True)
class GenerationJob:
    """A request for generated text, independent of the API it came through."""

    model: ServedModel
    model_name: str
    """As the client wrote it."""
    start: Callable[[Client], Sequence[TextStream]]
    """Starts the streams, one for each choice; called once the request is admitted."""
    renderer: RendererFactory
    stream: bool
    """Whether to stream the response."""
    prompts: int = 1
    alternatives: int = 1
    """Completions of each prompt."""
    count_field: str = "n"
    """The field that sets the number of choices, for the refusal of too many."""

    @property
    def choices(self) -> int:
        """Completions in the response."""
        return self.prompts * self.alternatives


@attrs.frozen
class AnswerRecords:
    """Where the end of every answer is noted."""

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
            MlxkError: The request is refused or the whole response failed; nothing has been sent.
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
        adaptations = report_adaptations(response, (each for stream in streams for each in stream.adaptations))
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
            common = {
                "logger": "answers",
                "request_id": identity,
                "model": job.model.id,
                "stream": job.stream,
                "duration_ms": round((self._clock.monotonic() - began) * 1000, 1),
            }
            if adaptations:
                common["adaptations"] = ",".join(adaptations)
            if error is not None:
                self._log.warning("generation failed", error=error.code, **common)
                return
            timings = [each.timings for each in finished]
            self._log.info(
                "generation finished",
                finish_reason=",".join(sorted({each.reason.value for each in finished})),
                prompt_tokens=sum(each.usage.prompt_tokens for each in finished[:: job.alternatives]),
                cached_tokens=sum(each.usage.cached_tokens for each in finished[:: job.alternatives]),
                completion_tokens=sum(each.usage.completion_tokens for each in finished),
                queue_ms=round(max(each.queue_seconds for each in timings) * 1000, 1),
                prompt_ms=round(max(each.prompt_seconds for each in timings) * 1000, 1),
                generation_ms=round(max(each.generation_seconds for each in timings) * 1000, 1),
                **common,
            )

        return on_end


_OnEnd = Callable[[Sequence[Finished], MlxkError | None], None]


class _Connection:
    """Cancels the delivery of a client that has disconnected, also when it did so before there was a delivery."""

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
