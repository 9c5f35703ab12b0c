"""The small parts of the server: sockets, what supervisor and worker say, figures, limits, logs of libraries."""

import errno
import logging
import re
import socket
import threading
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import attrs
import pytest
from doubles.event_log import InMemoryEventLog
from serving.parts import Parts

from mlxk.domain.errors import MlxkError, PortInUseError, QueueFullError, ServerShutdownError, ValidationError
from mlxk.domain.generation.request import Finished, FinishReason, Timings, Usage
from mlxk.entrypoints.container import Container
from mlxk.entrypoints.http.app import Application
from mlxk.entrypoints.http.lifecycle import ConcurrencyLimit, Metrics, ServerLifecycle, api_of
from mlxk.entrypoints.http.process import sockets, worker
from mlxk.entrypoints.http.process.log_stream import route_library_logs
from mlxk.entrypoints.http.process.supervisor import WorkerOrders, report_line, reported_error
from mlxk.entrypoints.http.process.worker import raise_descriptor_limit
from mlxk.entrypoints.server_address import ServerAddress
from mlxk.entrypoints.settings import ServerSettings
from mlxk.entrypoints.start_checks import is_loopback


def test_a_port_in_use_is_known_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=str(port)):
            sockets.listen("127.0.0.1", port)


def test_every_address_of_a_name_is_listened_on_at_one_port() -> None:
    listening = sockets.listen("localhost", 0)
    try:
        assert len({each.getsockname()[1] for each in listening}) == 1
        assert {each.getsockname()[0] for each in listening} <= {"127.0.0.1", "::1"}
    finally:
        for each in listening:
            each.close()


@pytest.mark.parametrize("host", ["no.such.name.invalid", "192.0.2.1", "a" * 300])
def test_a_host_that_is_none_of_ours_is_named(host: str) -> None:
    with pytest.raises(ValidationError, match="--host"):
        sockets.listen(host, 0)


IPV4 = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", 0))
IPV6 = (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("::1", 0, 0, 0))


@pytest.fixture
def without_ipv6(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Have the kernel refuse sockets of IPv6, as one that was built without it."""

    class Socket(socket.socket):
        def __init__(self, family: int = socket.AF_INET, *arguments: Any, **named: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *arguments, **named)

    monkeypatch.setattr(socket, "socket", Socket)
    return monkeypatch


def test_a_name_is_served_at_the_addresses_that_the_kernel_supports(without_ipv6: pytest.MonkeyPatch) -> None:
    without_ipv6.setattr(socket, "getaddrinfo", lambda *_, **__: [IPV4, IPV6])
    (listening,) = sockets.listen("localhost", 0)
    with listening:
        assert listening.family == socket.AF_INET


def test_an_address_that_the_kernel_does_not_support_is_named(without_ipv6: pytest.MonkeyPatch) -> None:
    without_ipv6.setattr(socket, "getaddrinfo", lambda *_, **__: [IPV6])
    with pytest.raises(ValidationError, match="'::1' is not an address of this machine"):
        sockets.listen("::1", 0)


def test_a_defect_while_models_are_loaded_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(worker, "warm_up", defect)
    reports: list[MlxkError | None] = []
    stopped, lifecycle = threading.Event(), ServerLifecycle()
    application, settings = cast("Application", SimpleNamespace(lifecycle=lifecycle)), ServerSettings(model="m")
    preload = worker.Preload(cast("Container", None), application, settings, reports.append, stopped.set)
    with pytest.raises(OSError, match="No space left"):
        preload.run()
    assert [report and report.code for report in reports] == ["internal_error"]
    assert preload.error is reports[0]
    assert (stopped.is_set(), lifecycle.preloaded) == (True, False)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("studio", False), ("", False)],
)
def test_loopback_is_told_from_the_network(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:1"),
        ("0.0.0.0", "http://127.0.0.1:1"),
        ("::", "http://[::1]:1"),
        ("::1", "http://[::1]:1"),
        ("studio", "http://studio:1"),
    ],
)
def test_the_address_shown_can_be_used(host: str, url: str) -> None:
    assert ServerAddress(host=host, port=1).url == url


@pytest.mark.parametrize("died", [None, -9, 1])
def test_orders_reach_a_worker_unchanged(died: int | None) -> None:
    settings = ServerSettings(port=1, model="demo", api_keys=("k",) * 9999, keep_alive=1.5, cors_origins=("null",))
    orders = WorkerOrders(settings, died)
    assert orders.to_line().count(b"\n") == 1
    assert WorkerOrders.of_line(orders.to_line()) == orders


def test_errors_of_a_worker_reach_the_supervisor_unchanged() -> None:
    line = report_line(PortInUseError("taken\n", hint="another", matches=("a",), detail={"port": 1}))
    assert line.count(b"\n") == 1
    received = reported_error(line)
    assert isinstance(received, PortInUseError)
    assert (received.message, received.hint, received.matches, received.detail) == (
        "taken\n",
        "another",
        ("a",),
        {"port": 1},
    )
    assert reported_error(report_line(None)) is None


def test_flags_out_of_range_are_all_named() -> None:
    with pytest.raises(ValidationError, match=r"--port .*; --max-streams .*; --drain-timeout"):
        ServerSettings(port=70000, max_streams=0, drain_seconds=-1).validate()
    ServerSettings().validate()


def test_keys_are_not_shown() -> None:
    assert "secret" not in repr(ServerSettings(api_keys=("secret",)))


def test_places_are_given_back_once() -> None:
    admission = ConcurrencyLimit(running=2, waiting=1)
    leave = admission.enter(3)
    with pytest.raises(QueueFullError):
        admission.enter(1)
    leave()
    leave()
    assert admission.admitted == 0
    with pytest.raises(ValidationError):
        admission.enter(4)


def test_places_are_counted_right_by_many_threads() -> None:
    admission = ConcurrencyLimit(running=8, waiting=8)

    def work() -> None:
        for _ in range(500):
            try:
                admission.enter(2)()
            except QueueFullError:
                continue

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert admission.admitted == 0


def test_an_answer_for_another_process_takes_a_place_until_it_ends() -> None:
    parts = Parts(settings=ServerSettings(max_streams=1, max_queue=0))
    leave = parts.application.admit()
    with pytest.raises(QueueFullError):
        parts.application.admit()
    leave()
    parts.application.admit()()
    parts.application.drain()
    with pytest.raises(ServerShutdownError):
        parts.application.admit()
    parts.close()


def test_a_draining_server_is_not_ready_and_takes_nothing() -> None:
    life = ServerLifecycle()
    assert not life.ready
    life.preloaded = True
    assert life.ready
    life.require_open()
    life.draining = True
    assert not life.ready
    with pytest.raises(ServerShutdownError):
        life.require_open()


FIGURE = r"[a-z_]+(\{[a-z]+=\"[^\"]*\"(,[a-z]+=\"[^\"]*\")*\})? [0-9.e+-]+"


def test_figures_are_in_the_form_of_prometheus() -> None:
    metrics = Metrics()
    metrics.request("/v1/models/{model_id:path}", "GET", 200)
    finished = Finished(FinishReason.STOP, Usage(5, 7, 2), Timings(0.1, 0.2, 0.3, 0.05))
    metrics.answers("a/b", "chat", [finished, finished], None)
    metrics.answers("a/b", "chat", [], "execution_error")
    lines = metrics.render({"mlxk_models_loaded": 1, "mlxk_model_in_use": {"a/b": 1}}).splitlines()
    assert 'mlxk_http_requests_total{route="/v1/models/{model_id:path}",method="GET",status="200"} 1' in lines
    assert "mlxk_completion_tokens_total 14" in lines
    assert "mlxk_cached_prompt_tokens_total 4" in lines
    assert 'mlxk_answers_total{outcome="stop"} 2' in lines
    assert 'mlxk_answers_total{outcome="execution_error"} 1' in lines
    assert "mlxk_models_loaded 1" in lines
    assert 'mlxk_model_in_use{model="a/b"} 1' in lines
    assert 'mlxk_model_tokens_total{model="a/b",api="chat",type="computed"} 6' in lines
    buckets = [line for line in lines if line.startswith("mlxk_queue_seconds_bucket")]
    assert [line.split()[1] for line in buckets] == ["0", "0", *["2"] * 13]
    assert buckets[2].startswith('mlxk_queue_seconds_bucket{model="a/b",api="chat",le="0.05"}')
    assert 'mlxk_time_to_first_token_seconds_count{model="a/b",api="chat"} 2' in lines
    assert 'mlxk_prefill_seconds_sum{model="a/b",api="chat"} 0.400000' in lines
    assert 'mlxk_time_per_output_token_seconds_sum{model="a/b",api="chat"} 0.100000' in lines  # 0.3 s for six tokens
    assert all(line.startswith("# ") or re.fullmatch(FIGURE, line) for line in lines)


def test_an_answer_that_was_cancelled_before_its_first_token_says_nothing_of_it() -> None:
    metrics = Metrics()
    metrics.answers("m", "chat", [Finished(FinishReason.CANCELLED, Usage(5, 0), Timings(0, 9.0, 0, 3.0))], None)
    page = metrics.render({})
    assert 'mlxk_queue_seconds_count{model="m",api="chat"} 1' in page
    assert "first_token_seconds_count" not in page
    assert "prefill_seconds_count" not in page
    assert "per_output_token_seconds_count" not in page


def test_names_of_models_are_quoted_and_bounded() -> None:
    metrics = Metrics()
    for number in range(200):
        metrics.embeddings(f'a"\\\n{number}', "embeddings", 1, 0.1)
    page = metrics.render({"mlxk_model_in_use": {'a"\\\n\udcff': 1}})
    assert 'mlxk_model_in_use{model="a\\"\\\\\\n?"} 1\n' in page
    counted = re.findall(r'mlxk_embedding_seconds_count\{model="(.*)",api="embeddings"\} (\d+)', page)
    assert len(counted) == 101
    assert dict(counted)["other"] == "100"


@pytest.mark.parametrize(
    ("route", "api"),
    [
        ("/v1/chat/completions", "chat"),
        ("/generate", "chat"),
        ("/completions", "completions"),
        ("/v1/responses", "responses"),
        ("/v1/messages", "messages"),
        ("/api/generate", "ollama"),
        ("/v1/embeddings", "embeddings"),
        ("/v1/audio/translations", "audio"),
        ("/v1/audio/speech", "audio"),
        ("/v1/models/{model_id:path}", "other"),
        (None, "other"),
    ],
)
def test_the_api_is_told_by_the_template_of_the_path(route: str | None, api: str) -> None:
    assert api_of(route) == api


def test_the_limit_of_open_files_is_raised_as_far_as_it_goes() -> None:
    assert 0 < raise_descriptor_limit(64) <= 64


@pytest.fixture
def own_logging() -> Iterator[None]:
    """Leave the process's logging as it was."""
    root, hook = logging.getLogger(), threading.excepthook
    handlers, level = root.handlers[:], root.level
    with warnings.catch_warnings():
        yield
    logging.captureWarnings(capture=False)
    root.handlers[:], threading.excepthook = handlers, hook
    root.setLevel(level)


@pytest.mark.usefixtures("own_logging")
def test_what_libraries_log_is_logged_without_what_requests_said() -> None:
    log = InMemoryEventLog()
    route_library_logs(log, "info")
    logging.getLogger("waitress").error("Exception while serving /canary")
    logging.getLogger("some.library").warning("disk is nearly full")
    logging.getLogger("some.library").info("chatter")
    try:
        raise RuntimeError("canary")
    except RuntimeError:
        logging.getLogger("some.library").exception("it failed")
    thread = threading.Thread(target=lambda: 1 / 0, name="worker")
    thread.start()
    thread.join()
    assert [(each.level, each.event) for each in log.events] == [
        ("error", "a library reports an event"),
        ("warning", "disk is nearly full"),
        ("error", "it failed"),
        ("error", "a thread ended unexpectedly"),
    ]
    assert log.events[2].fields["error"] == "RuntimeError"
    assert "canary" not in str(log.events)


def test_every_setting_of_the_server_has_a_default() -> None:
    assert all(field.default is not attrs.NOTHING for field in attrs.fields(ServerSettings))
