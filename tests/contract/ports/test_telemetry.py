"""The contract of the telemetry, held by every adapter."""

import datetime
import logging
import time
from collections.abc import Callable, Iterator

import attrs
import pytest
from doubles.event_log import InMemoryEventLog, LoggedEvent
from doubles.telemetry import InMemoryTelemetry
from serving.otlp_sink import OtlpSink

from mlxk.adapters.telemetry import CLOSE_SECONDS, OtlpTelemetry
from mlxk.application.ports.telemetry import NoTelemetry, ServedRequest, Telemetry
from mlxk.domain.errors import ValidationError

ENDED = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
SERVED = ServedRequest(operation="chat", api="messages", request_id="r1", ended=ENDED, seconds=2.0)
Sent = Callable[[], list[str]]


@pytest.fixture(params=["otlp", "in_memory", "nothing"])
def telemetry(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Telemetry, Sent]]:
    """A telemetry, and the operations of what it has sent since it was closed; empty where it sends nothing."""
    if request.param == "in_memory":
        kept = InMemoryTelemetry()
        yield kept, lambda: [served.operation for served in kept.served]
    elif request.param == "nothing":
        yield NoTelemetry(), list
    else:
        with OtlpSink() as sink:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url)
            yield OtlpTelemetry(InMemoryEventLog(), "1"), lambda: [span.name for span in sink.spans]


class TestTelemetry:
    def test_what_is_recorded_is_sent_in_order(self, telemetry: tuple[Telemetry, Sent]) -> None:
        sending, sent = telemetry
        sending.record(SERVED)
        sending.record(ServedRequest(operation="rerank", api="rerank", request_id="r2", ended=ENDED, seconds=0.0))
        sending.close()
        assert sent() in (["chat", "rerank"], [])

    def test_what_is_recorded_after_the_end_is_lost_and_ending_twice_does_no_harm(
        self, telemetry: tuple[Telemetry, Sent]
    ) -> None:
        sending, sent = telemetry
        sending.close()
        sending.record(SERVED)
        sending.close()
        assert sent() == []

    def test_odd_values_are_taken(self, telemetry: tuple[Telemetry, Sent]) -> None:
        sending, _ = telemetry
        odd = ServedRequest(
            operation="chat",
            api="chat",
            request_id="",
            ended=ENDED,
            seconds=-1.0,
            asked_model="",
            parameters={"seed": -(2**63), "temperature": float("nan")},
            first_token=99.0,
            error="x",
            parent={"traceparent": "\ud800", "tracestate": "=" * 9999},
        )
        sending.record(odd)
        sending.close()


def test_times_reach_the_collector_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    with OtlpSink() as sink:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url)
        telemetry = OtlpTelemetry(InMemoryEventLog(), "1")
        telemetry.record(SERVED)
        telemetry.close()
    second = 10**9
    assert sink.spans[0].end_time_unix_nano == round(ENDED.timestamp()) * second
    assert sink.spans[0].start_time_unix_nano == (round(ENDED.timestamp()) - 2) * second


def test_a_collector_that_fails_and_recovers_is_said_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    log = InMemoryEventLog()
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    with OtlpSink(400) as sink:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url)
        telemetry = OtlpTelemetry(log, "1")
        for count in (1, 2):
            telemetry.record(SERVED)
            sink.wait_for(count)
        sink.status = 200
        telemetry.record(SERVED)
        sink.wait_for(3)
        telemetry.close()
    said = [(event.level, event.fields.get("what")) for event in log.events]
    assert said == [("warning", "traces"), ("info", "traces")]


def test_another_protocol_is_said_to_have_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    log = InMemoryEventLog()
    with OtlpSink() as sink:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url)
        variables = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}
        telemetry = OtlpTelemetry(log, "1", variables)
        telemetry.record(SERVED)
        telemetry.close()
    assert [event.fields["variable"] for event in log.events] == ["OTEL_EXPORTER_OTLP_PROTOCOL"]
    assert len(sink.spans) == 1


def test_a_request_that_cannot_be_recorded_is_said_and_the_next_one_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    log = InMemoryEventLog()
    with OtlpSink() as sink:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url)
        telemetry = OtlpTelemetry(log, "1")
        telemetry.record(attrs.evolve(SERVED, seconds=float("inf")))
        telemetry.record(SERVED)
        telemetry.close()
        assert [span.name for span in sink.spans] == ["chat"]
    said = {"error": "OverflowError"}
    assert log.events == [LoggedEvent("warning", "a request could not be recorded for OpenTelemetry", said)]


def test_the_end_is_not_waited_for_beyond_its_seconds_which_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    log = InMemoryEventLog()
    with OtlpSink(seconds=60.0) as sink:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url)
        telemetry = OtlpTelemetry(log, "1")
        telemetry.record(SERVED)
        began = time.monotonic()
        telemetry.close()
        assert CLOSE_SECONDS <= time.monotonic() - began < CLOSE_SECONDS + 30
    assert [event.level for event in log.events if "did not take the last records" in event.event] == ["warning"]


@pytest.mark.parametrize("name", ["OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_METRIC_EXPORT_INTERVAL"])
def test_a_refused_variable_leaves_nothing_that_listens_to_the_library(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "-77123")
    library = logging.getLogger("opentelemetry")
    before = list(library.handlers)
    with pytest.raises(ValidationError, match="OTEL_"):
        OtlpTelemetry(InMemoryEventLog(), "1")
    assert library.handlers == before
    assert not library.isEnabledFor(logging.ERROR)
