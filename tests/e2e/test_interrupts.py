"""Ctrl-C, as the installed program takes it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from models.tiny_models import build

pytestmark = [pytest.mark.e2e, pytest.mark.mlx]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that talks for as long as one lets it."""
    directory = Path(build(tmp_path_factory.mktemp("interrupts") / "talker", num_hidden_layers=8).directory)
    endless = {"type": "array", "items": {"enum": [1, 2]}, "minItems": 100_000}
    (directory / "endless.json").write_text(json.dumps(endless))
    return directory


def start(workspace: Path, environment: dict[str, str], *flags: str) -> "subprocess.Popen[bytes]":
    """Start a long answer in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "mlxk", "run", str(workspace), "hello", "--json-schema", "endless.json", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment, "MLXK2_LOG_LEVEL": "info"},
        cwd=workspace,
    )


def wait_for_the_model(process: "subprocess.Popen[bytes]") -> None:
    """Wait until the log says that the model is loaded, so that there is an answer to interrupt."""
    assert process.stderr is not None
    while b"loaded a model" not in (line := process.stderr.readline()):
        assert line, "the program ended without loading the model"


COMMANDS = [["list", "--json"], ["run", "demo", "hello"], ["pull", "org/name", "--json"], ["serve", "--port", "0"]]


# The signals come when the program asks for these modules of its own, counted: what the interpreter does before is its
# own affair.
STARTING = """
import os, signal, sys
import mlxk.entrypoints.main as program
wanted, seen = [int(each) for each in sys.argv.pop(1).split(",")], 0
class Interrupting:
    def find_spec(name, path=None, target=None):
        global seen
        seen += 1
        if seen in wanted:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting)
sys.exit(program.main())
"""


def interrupted_start(
    at: str, command: list[str], environment: dict[str, str], folder: Path
) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-c", STARTING, at, *command],
        capture_output=True,
        env=environment,
        cwd=folder,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_an_interrupt_while_the_program_starts_ends_it_with_130_and_is_said(
    command: list[str], program_environment: dict[str, str], tmp_path: Path
) -> None:
    for at in ("2", "20", "60"):
        done = interrupted_start(at, command, program_environment, tmp_path)
        assert done.returncode == 130, (at, done)
        if "--json" in command:
            assert json.loads(done.stdout)["error"]["type"] == "interrupted"
            assert done.stderr == b""
        else:
            assert done.stderr.splitlines() == [done.stderr.strip()]
            assert b"Error: interrupted" in done.stderr


@pytest.mark.parametrize("at", ["2,3", "20,30"])
def test_a_second_interrupt_while_the_program_starts_ends_it_at_once(
    at: str, program_environment: dict[str, str], tmp_path: Path
) -> None:
    done = interrupted_start(at, ["list", "--json"], program_environment, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_an_interrupt_ends_the_answer_with_130(
    workspace: Path, program_environment: dict[str, str], flags: list[str]
) -> None:
    generated = ""
    for seconds in (1, 10, 30):  # a machine in use may take long for the first token
        with start(workspace, program_environment, *flags) as process:
            wait_for_the_model(process)
            time.sleep(seconds)
            assert process.poll() is None, "the answer was too short to interrupt"
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=60)
        assert (process.returncode, b"Traceback" in errors) == (130, False)
        generated = json.loads(output)["error"]["detail"]["response"] if flags else output.decode()
        if generated.strip():
            break
    assert generated.startswith("["), "what was generated until then is delivered"


def test_an_interrupted_answer_on_a_terminal_ends_its_line(
    workspace: Path, program_environment: dict[str, str]
) -> None:
    master, slave = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mlxk", "run", str(workspace), "hello", "--json-schema", "endless.json"],
        stdout=slave,
        stderr=subprocess.PIPE,
        env=program_environment,
        cwd=workspace,
    )
    os.close(slave)
    first = os.read(master, 1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    os.close(master)
    assert (process.returncode, bool(first), b"Traceback" in errors) == (130, True, False)
