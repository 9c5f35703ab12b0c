"""What light commands import: nothing that costs seconds, and nothing that runs a model."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "argcomplete",
    "falcon",
    "fastapi",
    "huggingface_hub",
    "jinja2",
    "mlx",
    "mlx_audio",
    "mlx_lm",
    "mlx_vlm",
    "numpy",
    "pydantic",
    "requests",
    "rich",
    "safetensors",
    "starlette",
    "structlog",
    "tokenizers",
    "torch",
    "transformers",
    "waitress",
    "yaml",
}

PROGRAM = """
import sys
from mlxk.entrypoints.main import main
status = main(sys.argv[1:])
print(status, *sorted(sys.modules), file=sys.stderr)
"""

SERVER = """
import http.client, json, os, signal, sys
from mlxk.entrypoints.http.process import sockets
from mlxk.entrypoints.http.process.supervisor import WorkerOrders
from mlxk.entrypoints.http.process.worker import serve_in_process
from mlxk.entrypoints.settings import ServerSettings, read_settings
listening = sockets.listen("127.0.0.1", 0)

def report(failure):
    connection = http.client.HTTPConnection(*listening[0].getsockname())
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    print(connection.getresponse().status, *sorted(sys.modules), file=sys.stderr)
    os.kill(os.getpid(), signal.SIGTERM)

serve_in_process(listening, read_settings(), WorkerOrders(ServerSettings(model="demo", log_level="error")), report)
"""

SUPERVISOR = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
from mlxk.entrypoints.main import main
os.kill(os.getpid(), signal.SIGTERM)
status = main(["serve", "--port", "0"])
print(status, *sorted(sys.modules), file=sys.stderr)
"""
"""Is interrupted before its first worker is ready; the signal is pending until the supervisor has its handlers."""

LIGHT = [
    ["--version"],
    ["--version", "--json"],
    ["list"],
    ["list", "--json"],
    ["list", "--all", "--health", "--verbose"],
    ["show", "demo"],
    ["show", "demo", "--json"],
    ["show", "demo", "--files"],
    ["health"],
    ["health", "demo", "--json"],
    ["schema", "list"],
    ["--help"],
]


def modules_after(
    arguments: list[str], environment: dict[str, str], folder: Path, program: str = PROGRAM
) -> tuple[int, set[str]]:
    """Run a program in a fresh interpreter and return its status and what was imported by then."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    status, *modules = done.stderr.splitlines()[-1].split()
    return int(status), set(modules)


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_a_light_command_imports_nothing_heavy(
    arguments: list[str], program_environment: dict[str, str], tmp_path: Path
) -> None:
    status, modules = modules_after(arguments, program_environment, tmp_path)
    assert status == 0
    assert HEAVY & {module.partition(".")[0] for module in modules} == set()


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["schema", "list"], ["list", "--fast"]], ids=" ".join)
def test_what_needs_no_model_builds_no_container(
    arguments: list[str], program_environment: dict[str, str], tmp_path: Path
) -> None:
    _, modules = modules_after(arguments, program_environment, tmp_path)
    assert "dependency_injector" not in modules


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "nosuch", "Hello"],
        ["run", "demo"],
        ["run", "nosuch", "Hi", "--image", "a.png"],
        ["run", "nosuch", "--audio", "a.wav"],
        ["embed", "nosuch", "Hello"],
    ],
    ids=" ".join,
)
def test_an_error_about_a_name_or_an_argument_does_not_wait_for_a_model_library(
    arguments: list[str], program_environment: dict[str, str], tmp_path: Path
) -> None:
    environment = {**program_environment, "MLXK2_ENABLE_ALPHA_FEATURES": "1"}
    status, modules = modules_after(arguments, environment, tmp_path)
    assert status != 0
    assert {"mlx", "mlx_lm", "mlx_vlm", "mlx_audio", "transformers"} & modules == set()


def test_a_model_that_is_here_loads_nothing_that_fetches(program_environment: dict[str, str], tmp_path: Path) -> None:
    _, modules = modules_after(["run", "demo", "--pull"], program_environment, tmp_path)
    assert "mlxk.application.use_cases.resolve_model" in modules
    assert not {"mlxk.application.use_cases.pull_model", "mlxk.entrypoints.cli.fetching"} & modules


def test_a_light_command_loads_only_the_adapters_it_uses(program_environment: dict[str, str], tmp_path: Path) -> None:
    _, modules = modules_after(["list", "--json"], program_environment, tmp_path)
    ours = {module for module in modules if module.startswith("mlxk.adapters.")}
    assert not any(module.startswith("mlxk.adapters.logging") for module in ours)
    assert "mlxk.adapters.mlx.text_generator" not in ours


def test_a_server_that_only_generates_text_loads_no_library_for_audio_and_images(
    program_environment: dict[str, str], tmp_path: Path
) -> None:
    status, modules = modules_after([], program_environment, tmp_path, SERVER)
    assert status == 200
    assert {"mlx_audio", "mlx_vlm"} & modules == set()


def test_the_supervisor_imports_no_web_framework_and_no_container(
    program_environment: dict[str, str], tmp_path: Path
) -> None:
    _, modules = modules_after([], program_environment, tmp_path, SUPERVISOR)
    assert (HEAVY | {"dependency_injector", "cattrs"}) & {module.partition(".")[0] for module in modules} == set()


def test_packages_hidden_from_the_container_library_can_be_imported_afterwards() -> None:
    script = "import mlxk.entrypoints.container, pydantic, yaml; print(pydantic.VERSION, yaml.__version__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip()
