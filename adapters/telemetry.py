"""OpenTelemetry: a span and metrics of each request, over OTLP/HTTP, by the conventions for generative AI.

The SDK reads the ``OTEL_*`` variables itself: endpoint, headers, service name, resource attributes, sampler, limits.
Its exporters run in threads of their own. Their log records may quote addresses and headers with credentials, so they
are dropped, and this module logs whether the collector accepts the data.
"""

import datetime
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mlxk.application.ports.system import EventLog
from mlxk.application.ports.telemetry import ServedRequest, Telemetry
from mlxk.domain.errors import ValidationError

CLOSE_SECONDS = 3.0
"""Time for the last records to reach the collector when the server stops."""

PROVIDER = "mlxk"

PROTOCOL = "http/protobuf"
_PROTOCOLS, _ENDPOINTS = (
    tuple(f"OTEL_EXPORTER_OTLP_{signal}{kind}" for signal in ("", "TRACES_", "METRICS_"))
    for kind in ("PROTOCOL", "ENDPOINT")
)

_VARIABLE = re.compile(r"OTEL_[A-Z0-9_]+")

_PARAMETERS = {"n": "gen_ai.request.choice.count"}
"""Attribute names of request parameters for which the conventions use another name."""

_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
"""Bucket boundaries of the histograms, in seconds, as the conventions advise."""


class _ExportStatus:
    """Logs the changes between successful and failed exports of one signal."""

    def __init__(self, log: EventLog, signal: str) -> None:
        self._log = log
        self._signal = signal
        self._fails = False

    def note(self, *, failed: bool) -> None:
        if failed and not self._fails:
            self._log.warning("the collector of OpenTelemetry does not take what is sent", what=self._signal)
        elif self._fails and not failed:
            self._log.info("the collector of OpenTelemetry takes what is sent again", what=self._signal)
        self._fails = failed


class _ConfigurationWarnings(logging.Handler):
    """Logging handler that keeps, of the SDK's warnings, only the names of variables: their values may be secret."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.names: set[str] = set()
        self._received = False
        self._logger = logging.getLogger("opentelemetry")
        self._logger.propagate = False
        self._logger.setLevel(logging.WARNING)
        self._logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._received = True
        self.names |= set(_VARIABLE.findall(record.getMessage()))

    def silence(self) -> bool:
        """Drop all further log records of the SDK; return whether there was a warning so far."""
        self._logger.removeHandler(self)
        self._logger.setLevel(logging.CRITICAL + 1)
        return self._received


class _Spans(SpanExporter):
    def __init__(self, log: EventLog) -> None:
        self._exporter = OTLPSpanExporter()
        self._status = _ExportStatus(log, "traces")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self._status.note(failed=result is not SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


class _Metrics(MetricExporter):
    def __init__(self, log: EventLog) -> None:
        self._exporter = OTLPMetricExporter()
        self._status = _ExportStatus(log, "metrics")
        super().__init__(self._exporter._preferred_temporality, self._exporter._preferred_aggregation)

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: object) -> MetricExportResult:
        result = MetricExportResult.FAILURE
        try:
            result = self._exporter.export(metrics_data, timeout_millis)
        finally:
            self._status.note(failed=result is not MetricExportResult.SUCCESS)
        return result

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: object) -> None:
        self._exporter.shutdown(timeout_millis)


class OtlpTelemetry(Telemetry):
    """Sends to the collector that the standard variables name.

    Args:
        log: Receives warnings about ignored variables and failed exports.
        version: Of this program.
        variables: The ``OTEL_*`` variables; exporters and protocol are read here, since the SDK does not read them.

    Raises:
        ValidationError: The SDK refuses a variable's value, or an endpoint is not an HTTP address.
    """

    def __init__(self, log: EventLog, version: str, variables: Mapping[str, str] = MappingProxyType({})) -> None:
        self._log = log
        self._closed = False
        for name in _ENDPOINTS:
            if not variables.get(name, "http://").startswith(("http://", "https://")):
                raise ValidationError(
                    f"{name} must begin with http:// or https://", hint=f"Such as {name}=http://localhost:4318"
                )
        warnings = _ConfigurationWarnings()
        try:
            resource = _resource(version)
            # The default exit handlers of the providers can block for half a minute.
            self._tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
            if variables.get("OTEL_TRACES_EXPORTER") != "none":
                self._tracers.add_span_processor(BatchSpanProcessor(_Spans(log)))
            exports_metrics = variables.get("OTEL_METRICS_EXPORTER") != "none"
            readers = [PeriodicExportingMetricReader(_Metrics(log))] if exports_metrics else []
            self._meters = MeterProvider(readers, resource, shutdown_on_exit=False)
        except ValueError as error:
            raise ValidationError(
                "OpenTelemetry refuses the value of an OTEL_ variable, such as a number that is none.",
                hint="See which are set: env | grep ^OTEL_",
            ) from error
        finally:
            warned = warnings.silence()
        if warned:
            names = ", ".join(sorted(warnings.names)) or "unknown"
            log.warning("OpenTelemetry ignores what a variable holds", variable=names)
        for name in _PROTOCOLS:
            if variables.get(name, PROTOCOL) != PROTOCOL:
                log.warning(f"OpenTelemetry's data is sent as {PROTOCOL}, whatever this variable says", variable=name)
        self._tracer = self._tracers.get_tracer("mlxk", version)
        histogram = self._meters.get_meter("mlxk", version).create_histogram
        histograms = {
            "request.duration": ("Duration of a request.", _SECONDS),
            "time_to_first_token": ("Time to the first token of successful requests.", _FIRST_TOKEN),
            "time_per_output_token": ("Time per token after the first of successful requests.", _PER_TOKEN),
        }
        self._histograms = {
            name: histogram(f"gen_ai.server.{name}", "s", text, explicit_bucket_boundaries_advisory=bounds)
            for name, (text, bounds) in histograms.items()
        }

    def record(self, served: ServedRequest) -> None:
        if self._closed:
            return
        try:
            self._span(served)
            self._measure(served)
        except Exception as error:  # noqa: BLE001 - no failure of the SDK may fail a request
            self._log.warning("a request could not be recorded for OpenTelemetry", error=type(error).__name__)

    def close(self) -> None:
        self._closed = True
        # The exporters retry for longer than this; daemon threads do not keep the process alive.
        shutdowns: list[Callable[[], object]] = [self._tracers.shutdown, self._meters.shutdown]
        threads = [threading.Thread(target=shutdown, name="mlxk-telemetry-end", daemon=True) for shutdown in shutdowns]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + CLOSE_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            self._log.warning("the collector of OpenTelemetry did not take the last records in time")

    def _span(self, served: ServedRequest) -> None:
        end = _nanoseconds(served.ended)
        start = end - round(served.seconds * 1e9)
        attributes = _attributes(served)
        span = self._tracer.start_span(
            _name(served),
            TraceContextTextMapPropagator().extract(served.parent),
            SpanKind.SERVER,
            {name: value for name, value in attributes.items() if value is not None},
            start_time=start,
        )
        for name, seconds in (("queue_end", served.queue_ended), ("first_token", served.first_token)):
            if seconds is not None:
                span.add_event(name, timestamp=start + round(seconds * 1e9))
        if served.error is not None:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)

    def _measure(self, served: ServedRequest) -> None:
        # No model names as clients wrote them: the number of label values has to stay small.
        common: dict[str, Any] = {
            "gen_ai.operation.name": served.operation,
            "gen_ai.provider.name": PROVIDER,
            **({} if served.model is None else {"gen_ai.response.model": served.model}),
        }
        failed = {} if served.error is None else {"error.type": served.error}
        self._histograms["request.duration"].record(served.seconds, {**common, **failed})
        if served.error is None:
            for name, seconds in (
                ("time_to_first_token", served.first_token),
                ("time_per_output_token", served.seconds_per_token),
            ):
                if seconds is not None:
                    self._histograms[name].record(seconds, common)


def _resource(version: str) -> Resource:
    """Return the service's attributes from the variables, with our service name where they set none."""
    resource = Resource.create({SERVICE_VERSION: version})
    is_named = not str(resource.attributes[SERVICE_NAME]).startswith("unknown_service")
    return resource if is_named else resource.merge(Resource({SERVICE_NAME: PROVIDER}))


def _name(served: ServedRequest) -> str:
    model = served.asked_model or served.model
    return served.operation if model is None else f"{served.operation} {model}"


def _attributes(served: ServedRequest) -> Mapping[str, Any]:
    parameters = {_PARAMETERS.get(name, f"gen_ai.request.{name}"): value for name, value in served.parameters.items()}
    return {
        "gen_ai.operation.name": served.operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": served.asked_model,
        "gen_ai.response.model": served.model,
        **parameters,
        "gen_ai.usage.input_tokens": served.input_tokens,
        "gen_ai.usage.cache_read.input_tokens": served.cached_tokens,
        "gen_ai.usage.output_tokens": served.output_tokens,
        "gen_ai.response.finish_reasons": served.finish_reasons or None,
        "error.type": served.error,
        "mlxk.api": served.api,
        "mlxk.request_id": served.request_id,
    }


def _nanoseconds(moment: datetime.datetime) -> int:
    since = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1000
