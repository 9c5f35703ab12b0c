"""A collector of OpenTelemetry on a loopback socket, which keeps the spans and metrics that are sent to it."""

import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from serving.running import eventually


class OtlpSink:
    """Takes what is sent until the block is left.

    Args:
        status: What it answers.
        seconds: How long it waits before that.
    """

    def __init__(self, status: int = 200, seconds: float = 0.0) -> None:
        self.status = status
        self.bodies: list[bytes] = []
        """As they were sent."""
        self.headers: list[dict[str, str]] = []
        self.spans: list[Any] = []
        self.resources: list[dict[str, Any]] = []
        self.metrics: dict[str, Any] = {}
        """By name; the last one that was sent."""
        sink, ended = self, threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                sink._take(self.path, body, dict(self.headers.items()))
                ended.wait(seconds)
                self.send_response(sink.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._ended = ended
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    def _take(self, path: str, body: bytes, headers: dict[str, str]) -> None:
        self.bodies.append(body)
        self.headers.append(headers)
        if path == "/v1/traces":
            for each in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.resources.append(values_of(each.resource.attributes))
                for scope in each.scope_spans:
                    self.spans += scope.spans
        elif path == "/v1/metrics":
            for one in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for measured in one.scope_metrics:
                    self.metrics |= {metric.name: metric for metric in measured.metrics}

    def wait_for(self, spans: int, seconds: float = 60.0) -> list[Any]:
        """Return the spans once there are as many."""
        assert eventually(lambda: len(self.spans) >= spans, seconds), f"{len(self.spans)} spans of {spans}"
        return self.spans


def values_of(attributes: Any) -> Mapping[str, Any]:
    """Return attributes by name, lists as lists."""
    found: dict[str, Any] = {}
    for each in attributes:
        kind = each.value.WhichOneof("value")
        value = getattr(each.value, kind)
        found[each.key] = [one.string_value for one in value.values] if kind == "array_value" else value
    return found
