"""The contract of the probe of servers, held by the adapter on a real socket and by the double."""

import http.server
import threading
from collections.abc import Iterator

import pytest
from doubles.server_probe import InMemoryServerProbe

from mlxk.adapters.metrics_page import HttpServerProbe, metrics
from mlxk.application.ports.measuring import CompletionServer, ServerProbe
from mlxk.domain.errors import AccessDeniedError, NetworkError
from mlxk.domain.generation.request import EngineFigures
from mlxk.domain.monitoring import ServerReading, WatchedModel

PAGE = r"""# HELP mlxk_answers_running Answers being computed.
# TYPE mlxk_answers_running gauge
mlxk_http_requests_total{route="/v1/models",method="GET",status="200"} 7
mlxk_answers_running 2
mlxk_answers_waiting 1
mlxk_engine_prompt_tokens_total 100
mlxk_engine_cached_tokens_total 50
mlxk_engine_generated_tokens_total 1.5e+03
mlxk_engine_memory_bytes 123456789012
mlxk_prefix_cache_bytes 4096
mlxk_engine_responding 1
mlxk_model_weight_bytes{model="org/b \"quoted\" \\n"} 300
mlxk_model_weight_bytes{model="demo"} 200
mlxk_model_in_use{model="demo"} 1
mlxk_model_tokens_per_second{model="demo"} 61.5
"""
OTHERS = {
    "/other/metrics": "python_gc_objects_collected_total 5\n",
    "/odd/metrics": "usage -\n",
    "/large/metrics": PAGE.replace("running 2", "running 1e999"),
}
ENGINE = EngineFigures(2, 1, 150, 50, 1500, 123456789012, 4096)
MODELS = (WatchedModel("demo", 200, True, 61.5), WatchedModel('org/b "quoted" \\n', 300))


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == "Bearer sesame"
        pages = {"/metrics": PAGE, **OTHERS}
        status = 401 if not known else 200 if self.path in pages else 404
        body = pages.get(self.path, "").encode() if known else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(params=["http", "in_memory"])
def probe(request: pytest.FixtureRequest, address: str) -> ServerProbe:
    if request.param == "http":
        return HttpServerProbe()
    return InMemoryServerProbe({address: ServerReading(address, None, MODELS, ENGINE)}, "sesame")


class TestServerProbe:
    def test_models_and_figures_are_read(self, probe: ServerProbe, address: str) -> None:
        reading = probe.read(CompletionServer(address, api_key="sesame"))
        assert reading == ServerReading(address, None, MODELS, ENGINE)

    def test_another_key_is_asked_for(self, probe: ServerProbe, address: str) -> None:
        with pytest.raises(AccessDeniedError):
            probe.read(CompletionServer(address, api_key="melon"))

    def test_a_server_that_is_not_there_is_said(self, probe: ServerProbe) -> None:
        with pytest.raises(NetworkError, match="cannot be asked"):
            probe.read(CompletionServer("http://127.0.0.1:1", api_key="sesame"))


@pytest.mark.parametrize("path", ["/other", "/odd", "/large", "/nothing"])
def test_a_server_of_another_make_is_said(address: str, path: str) -> None:
    with pytest.raises(NetworkError, match="does not report the figures"):
        HttpServerProbe().read(CompletionServer(f"{address}{path}", api_key="sesame"))


def test_lines_of_another_form_are_passed_over() -> None:
    assert metrics(b'up 1\nodd{model="a",api="b"} 2\nname NaN\n# up 2\n\xff 3\n') == {"up": {None: 1.0}}
