"""``mlxk serve --otlp``: the worker's process sends; what becomes of the collector is no matter for an answer."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from serving.otlp_sink import OtlpSink, values_of
from serving.program import ServedProgram

pytestmark = pytest.mark.e2e
Program = Callable[..., "subprocess.CompletedProcess[str]"]
BODY = {"model": "demo", "prompt": "What is", "max_tokens": 2}
CREDENTIALS = "user:hunter2@"

WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None
from mlxk.entrypoints.main import main
sys.exit(main(sys.argv[2:]))
"""


def stopped(server: ServedProgram) -> float:
    """Stop a server; return the seconds that it took."""
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    return time.monotonic() - began


@pytest.mark.parametrize("flags", [[], ["--no-supervisor"]], ids=["supervised", "alone"])
def test_a_stopping_server_sends_what_is_left(
    flags: list[str], program_environment: dict[str, str], tmp_path: Path
) -> None:
    with OtlpSink() as sink:
        environment = {**program_environment, "OTEL_EXPORTER_OTLP_ENDPOINT": sink.url}
        with ServedProgram(tmp_path, environment, "--otlp", *flags) as server:
            assert server.ask("POST", "/v1/completions", BODY)[0] == 200
            assert stopped(server) < 50
        assert [span.name for span in sink.spans] == ["text_completion demo"]
        assert "gen_ai.server.request.duration" in sink.metrics


def test_the_setting_switches_it_on_and_a_new_worker_sends_too(
    program_environment: dict[str, str], tmp_path: Path
) -> None:
    folder = Path(program_environment["HOME"]) / ".config" / "mlxk"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("[serve]\notlp = true\n")
    with OtlpSink() as sink:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        with ServedProgram(tmp_path, {**program_environment, **variables}) as server:
            assert server.ask("POST", "/v1/completions", BODY)[0] == 200
            assert values_of(sink.wait_for(1)[0].attributes)["gen_ai.usage.output_tokens"] == 2
            worker = subprocess.check_output(["pgrep", "-P", str(server.process.pid)], text=True).split()[-1]
            subprocess.run(["kill", "-9", worker], check=True)
            until = time.monotonic() + 60
            while time.monotonic() < until:
                try:
                    if server.ask("POST", "/v1/completions", BODY)[0] == 200:
                        break
                except OSError:
                    time.sleep(0.1)
            sink.wait_for(2)
        received = len(sink.bodies)
        with ServedProgram(tmp_path, {**program_environment, **variables}, "--no-otlp") as server:
            assert server.ask("POST", "/v1/completions", BODY)[0] == 200
        assert len(sink.bodies) == received


@pytest.mark.parametrize("collector", ["closed", "silent", "failing"])
def test_a_collector_that_does_not_answer_delays_nothing(
    collector: str, program_environment: dict[str, str], tmp_path: Path
) -> None:
    with OtlpSink(503, 0.0 if collector == "failing" else 60.0) as sink, (tmp_path / "log").open("wb") as log:
        endpoint = sink.url
        if collector == "closed":
            with socket.create_server(("127.0.0.1", 0)) as free:
                endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint.replace("//", f"//{CREDENTIALS}"),
            "OTEL_EXPORTER_OTLP_HEADERS": "authorization=hunter3, broken",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_BSP_MAX_QUEUE_SIZE": "4",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2",
        }
        with ServedProgram(tmp_path, {**program_environment, **variables}, "--otlp", stderr=log) as server:
            server.ask("POST", "/v1/completions", BODY)  # loads the model
            began = time.monotonic()
            for _ in range(20):
                assert server.ask("POST", "/v1/completions", BODY)[0] == 200
            assert time.monotonic() - began < 15
            time.sleep(2)  # for the first failure to be certain
            assert stopped(server) < 50
    lines = (tmp_path / "log").read_text()
    assert lines.count("does not take what is sent") <= 2
    assert "traces" in lines
    assert "hunter" not in lines
    assert "Traceback" not in lines


@pytest.mark.parametrize("module", ["opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter"])
@pytest.mark.parametrize("flags", [[], ["--no-supervisor"]], ids=["supervised", "alone"])
def test_without_the_extra_the_server_does_not_start_and_says_what_to_install(
    module: str, flags: list[str], program_environment: dict[str, str], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:  # the packages are looked for before the port is tried
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT, module, "serve", "--otlp", "--port", port, "--json", *flags],
            env=program_environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    error = json.loads(done.stdout)["error"]
    assert done.returncode == 1
    assert error["type"] == "backend_not_installed"
    assert error["message"] == "--otlp needs the OpenTelemetry SDK, which is not installed"
    assert error["hint"] == "Install it: pip install 'mlxk[otel]'"
    assert "Traceback" not in done.stderr


def test_a_variable_that_the_sdk_refuses_is_an_error_without_its_value(mlxk: Program) -> None:
    done = mlxk("serve", "--otlp", "--port", "0", "--json", OTEL_BSP_MAX_QUEUE_SIZE="-77123")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["type"]) == (1, "validation_error")
    assert "OTEL_" in error["message"]
    assert "77123" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
def test_an_address_without_a_scheme_is_an_error_that_names_its_variable(mlxk: Program, name: str) -> None:
    done = mlxk("serve", "--otlp", "--port", "0", "--json", **{name: "localhost:4317"})
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["type"]) == (1, "validation_error")
    assert error["message"] == f"{name} must begin with http:// or https://"


def test_a_variable_that_the_sdk_ignores_is_named_without_its_value(
    program_environment: dict[str, str], tmp_path: Path
) -> None:
    with OtlpSink() as sink, (tmp_path / "log").open("wb") as log:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.url, "OTEL_EXPORTER_OTLP_HEADERS": "hunter2"}
        environment = {**program_environment, **variables, "OTEL_TRACES_SAMPLER": "hunter3"}
        with ServedProgram(tmp_path, environment, "--otlp", stderr=log) as server:
            assert server.ask("POST", "/v1/completions", BODY)[0] == 200
        assert len(sink.spans) == 1
    lines = (tmp_path / "log").read_text()
    assert "ignores what a variable holds" in lines
    assert "hunter" not in lines
