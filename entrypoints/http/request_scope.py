"""What every request has: an id, a caller, a line in the log, and a trace for telemetry.

A trace is filled while the request is answered, and recorded once, when the answer has ended.
"""

import math
import re
import uuid
from collections.abc import Mapping, Sequence

import attrs
import falcon

from mlxk.application.ports.system import Clock, EventLog
from mlxk.application.ports.telemetry import ServedRequest, Telemetry
from mlxk.domain.generation.request import Finished, FinishReason
from mlxk.entrypoints.http.lifecycle import Metrics, api_of, route_of

_OPERATIONS = {
    "/chat/completions": "chat",
    "/generate": "chat",
    "/completions": "text_completion",
    "/responses": "chat",
    "/messages": "chat",
    "/api/chat": "chat",
    "/api/generate": "text_completion",
    "/api/embed": "embeddings",
    "/api/embeddings": "embeddings",
    "/embeddings": "embeddings",
    "/rerank": "rerank",
    "/reranking": "rerank",
    "/audio/transcriptions": "transcription",
    "/audio/translations": "translation",
    "/audio/speech": "speech",
}
"""Operations by the template of the path, without its version prefix."""

_PARAMETERS = {
    **{name: name for name in ("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "seed", "n")},
    **dict.fromkeys(("num_predict", "max_output_tokens", "max_tokens", "max_completion_tokens"), "max_tokens"),
}
"""Names of parameters in telemetry, by request field; of several fields for one parameter, the last one counts."""

MAX_NAME = 256
"""Characters of a requested model's name that are kept."""

_TRACE_HEADERS = ("traceparent", "tracestate")


@attrs.define(kw_only=True)
class Trace:
    """The facts of one request for telemetry. It lives as long as the answer, so it holds no reference to the body."""

    began: float
    """Start of the request, on the monotonic clock."""
    asked_model: str | None = None
    """The model's name in the request."""
    parameters: Mapping[str, int | float] = attrs.field(factory=dict)
    model: str | None = None
    """Id of the model that serves the request."""
    submitted: float | None = None
    """When it was submitted to the engine, on the monotonic clock."""
    tokens: int | None = None
    """Input tokens, for requests without completions."""
    finished: Sequence[Finished] = ()
    alternatives: int = 1
    """Completions of each prompt."""
    error: str | None = None
    ends_later: bool = False
    """Whether the answer is streamed after the headers; its sender then records the trace."""
    operation: str = ""
    api: str = ""
    request_id: str = ""
    parent: Mapping[str, str] = attrs.field(factory=dict)

    def asks(self, sent: Mapping[str, object]) -> None:
        """Store the model and the parameters of a request; no other field is read."""
        model, options = sent.get("model"), sent.get("options")
        if isinstance(model, str) and model:
            self.asked_model = model[:MAX_NAME]
        fields = {**options, **sent} if isinstance(options, dict) else sent
        self.parameters = {
            known: number for name, known in _PARAMETERS.items() if (number := _number(fields.get(name))) is not None
        }


def _number(value: object) -> int | float | None:
    """Return a value that is a finite number and, as an integer, fits into 64 bits; None for any other."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    fits = -(2**63) <= value < 2**63 if isinstance(value, int) else math.isfinite(value)
    return value if fits else None


def trace_of(request: falcon.Request) -> Trace:
    """Return the trace of a request; ``RequestScope`` must have run."""
    trace: Trace = request.context.trace
    return trace


class Tracer:
    """Gives every request a trace, and records the traces of requests to models."""

    def __init__(self, telemetry: Telemetry, clock: Clock) -> None:
        self._telemetry = telemetry
        self._clock = clock

    def begin(self, request: falcon.Request) -> None:
        """Give a request a trace."""
        request.context.trace = Trace(began=self._clock.monotonic())

    def answered(self, request: falcon.Request, identity: str) -> None:
        """Record a request to a model whose response is about to be sent, unless its answer is streamed."""
        trace: Trace | None = getattr(request.context, "trace", None)
        path = route_of(request.uri_template)
        if trace is not None and not trace.ends_later and request.method == "POST" and path in _OPERATIONS:
            self.identify(request, trace, identity)
            self.end(trace)

    def identify(self, request: falcon.Request, trace: Trace, identity: str) -> None:
        """Copy the facts of a request into its trace, on the request's thread: the trace may end on another."""
        path = route_of(request.uri_template)
        trace.operation, trace.api, trace.request_id = _OPERATIONS.get(path, "chat"), api_of(path), identity
        trace.parent = {name: value for name in _TRACE_HEADERS if (value := request.get_header(name)) is not None}

    def end(self, trace: Trace) -> None:
        """Record a request that has ended."""
        now = self._clock.monotonic()
        finished, usage = trace.finished, [each.usage for each in trace.finished]
        prompts = usage[:: trace.alternatives]
        queue_ended, first_token = _milestones(trace, now)
        self._telemetry.record(
            ServedRequest(
                operation=trace.operation,
                api=trace.api,
                request_id=trace.request_id,
                ended=self._clock.now(),
                seconds=now - trace.began,
                asked_model=trace.asked_model,
                model=trace.model,
                parameters=trace.parameters,
                input_tokens=sum(each.prompt_tokens for each in prompts) if usage else trace.tokens,
                cached_tokens=sum(each.cached_tokens for each in prompts) if usage else None,
                output_tokens=sum(each.completion_tokens for each in usage) if usage else None,
                finish_reasons=tuple(each.reason.value for each in finished),
                queue_ended=queue_ended,
                first_token=first_token,
                seconds_per_token=_seconds_per_token(finished),
                error=trace.error,
                parent=trace.parent,
            )
        )


def _milestones(trace: Trace, now: float) -> tuple[float | None, float | None]:
    """Return when the first completion left the queue, and had its first token, in seconds from the request's start."""
    if trace.submitted is None or not trace.finished:
        return None, None
    before, most = trace.submitted - trace.began, now - trace.began
    queue_ended = min(each.timings.load_seconds + each.timings.queue_seconds for each in trace.finished)
    # A completion that was cancelled without a token has no time of a first one.
    firsts = [
        each.timings.first_token_seconds
        for each in trace.finished
        if each.usage.completion_tokens or each.reason is not FinishReason.CANCELLED
    ]
    return min(before + queue_ended, most), min(before + min(firsts), most) if firsts else None


def _seconds_per_token(finished: Sequence[Finished]) -> float | None:
    several = [each for each in finished if each.usage.completion_tokens > 1]
    tokens = sum(each.usage.completion_tokens - 1 for each in several)
    return sum(each.timings.generation_seconds for each in several) / tokens if tokens else None


REQUEST_ID = "X-Request-ID"

WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,128}")

QUIET_ROUTES = frozenset({"/health", "/livez", "/readyz", "/metrics", "/v1/metrics", "/page/{file:path}"})
"""Routes logged at level debug: probes, which come every few seconds, and files of the chat page."""


class RequestScope:
    """Gives every request an id, the client's if it is well-formed, and logs the response.

    The log has the route, and never the path or the query, which may contain secrets.
    """

    def __init__(self, log: EventLog, clock: Clock, metrics: Metrics, tracer: Tracer) -> None:
        self._tracer = tracer
        self._log = log
        self._clock = clock
        self._metrics = metrics

    def process_request(self, request: falcon.Request, response: falcon.Response) -> None:
        """Set the request's id and start time."""
        request.context.request_id = request_id_from(request.get_header(REQUEST_ID))
        request.context.began = self._clock.monotonic()
        self._tracer.begin(request)

    def process_response(
        self, request: falcon.Request, response: falcon.Response, resource: object, succeeded: bool
    ) -> None:
        """Set the common headers, and log the request; its stream may still run."""
        response.set_header(REQUEST_ID, request_id(request))
        response.set_header("X-Content-Type-Options", "nosniff")
        route = request.uri_template or "unknown"
        status = response.status_code
        method = request.method if request.method in falcon.HTTP_METHODS else "unknown"
        self._metrics.request(route, method, status)
        self._tracer.answered(request, request_id(request))
        seconds = self._clock.monotonic() - getattr(request.context, "began", self._clock.monotonic())
        write = self._log.debug if route in QUIET_ROUTES else self._log.info
        write(
            "request",
            logger="access",
            request_id=request_id(request),
            method=method,
            route=route,
            status=status,
            duration_ms=round(seconds * 1000, 1),
        )


def request_id_from(given: str | None) -> str:
    """Return the client's request id if it is well-formed, otherwise a new one."""
    return given if given is not None and WELL_FORMED.fullmatch(given) else uuid.uuid4().hex


def request_id(request: falcon.Request) -> str:
    """Return the id of a request."""
    # Falcon refuses some requests before any middleware runs.
    identity: str | None = getattr(request.context, "request_id", None)
    if identity is None:
        identity = request.context.request_id = request_id_from(request.get_header(REQUEST_ID))
    return identity


@attrs.frozen
class Caller:
    """The sender of a request."""

    tenant: str
    """The tenant whose cached prompts the request may reuse; see ``GenerationRequest.tenant``."""
    is_operator: bool
    """Whether it may read and clear the cached prompts of all tenants; without any keys everyone may."""


def caller_of(request: falcon.Request) -> Caller:
    """Return the sender of a request; ``KeyGuard`` must have run."""
    caller: Caller = request.context.caller
    return caller
