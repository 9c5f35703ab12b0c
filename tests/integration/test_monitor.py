"""``mlxk monitor`` around commands and beside servers: the curve of their memory, exit statuses, signals, its file."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
from jsonschema import Draft202012Validator
from models.tiny_models import build
from serving.program import ServedProgram

from mlxk import contracts

Program = Callable[..., "subprocess.CompletedProcess[str]"]
Line = dict[str, Any]

pytestmark = pytest.mark.mlx
MLXK = (sys.executable, "-m", "mlxk")
MIB = 2**20
SCHEMAS = Path(contracts.__file__).parent / "cli" / "v0"
SAMPLE = Draft202012Validator(json.loads((SCHEMAS / "sample.schema.json").read_text()))


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model, whose weights are of 100 MB and more."""
    folder = tmp_path_factory.mktemp("workspaces")
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}
    build(folder / "heavy", **shape, num_key_value_heads=8, head_dim=64)
    return folder


@pytest.fixture
def environment(program_environment: dict[str, str], heavy: Path) -> dict[str, str]:
    return {**program_environment, "MLXK_WORKSPACE_HOME": str(heavy)}


@pytest.fixture
def server(environment: dict[str, str], tmp_path: Path) -> Iterator[ServedProgram]:
    with ServedProgram(tmp_path, environment) as served:
        yield served


def weights(heavy: Path) -> int:
    return sum(path.stat().st_size for path in heavy.rglob("*.safetensors"))


def samples(path: Path) -> tuple[list[Line], Line]:
    """Return the samples and the summary of a file."""
    *lines, last = map(json.loads, path.read_text().splitlines())
    return lines, last["summary"]


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def lines_so_far(path: Path) -> list[Line]:
    """Return the whole lines of a file that is being written."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def test_the_memory_of_a_run_follows_the_loading_of_its_model(
    environment: dict[str, str], tmp_path: Path, heavy: Path
) -> None:
    file = tmp_path / "run.jsonl"
    asked = (*MLXK, "run", "heavy", "hello", "--max-tokens", "20", "--no-server", "--json")
    done = subprocess.run(
        [*MLXK, "monitor", "-o", str(file), "--interval", "0.1", "--", *asked],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert json.loads(done.stdout)["command"] == "run"  # untouched: one document of the command
    lines, summary = samples(file)
    memory = [line["command"]["memory_bytes"] for line in lines if "command" in line]
    assert min(memory) < 100 * MIB
    assert max(memory) > min(memory) + weights(heavy)
    assert "command" not in lines[-1]  # it has ended, and its memory with it
    assert (summary["exit_code"], summary["samples"]) == (0, len(lines))
    assert summary["command_max_bytes"] == max(memory)
    assert "Command    exit status 0; at most" in done.stderr


def test_the_memory_of_a_server_follows_a_model_that_is_loaded_and_unloaded(
    server: ServedProgram, environment: dict[str, str], tmp_path: Path, heavy: Path
) -> None:
    file, size = tmp_path / "serve.jsonl", weights(heavy)
    monitor = subprocess.Popen(
        [*MLXK, "monitor", "-o", str(file), "--interval", "0.1", "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def arrays() -> int:
        (*_, line) = lines_so_far(file)
        return int(line["servers"][0]["engine"]["array_bytes"])

    def until_seen_again() -> None:
        many = len(lines_so_far(file))
        until(lambda: len(lines_so_far(file)) >= many + 4)

    until(lambda: any(line["servers"] for line in lines_so_far(file)))
    until_seen_again()
    assert server.chat(model="heavy") == 200
    until(lambda: arrays() >= size)
    until_seen_again()
    assert server.ask("POST", "/v1/unload", {"model": "heavy"})[0] == 200
    until(lambda: arrays() < size / 10)
    until_seen_again()
    monitor.send_signal(signal.SIGINT)
    printed, said = monitor.communicate(timeout=60)
    assert (monitor.returncode, said) == (0, "")
    data = json.loads(printed)["data"]

    lines, _ = samples(file)
    there = [line["servers"][0] for line in lines if line["servers"]]
    held = [[each["name"] for each in one["models"]] for one in there]
    loaded, unloaded = held.index(["heavy"]), len(held) - held[::-1].index(["heavy"])
    assert 0 < loaded < unloaded < len(there)
    memory = [one["memory"]["memory_bytes"] for one in there]
    before, peak, after = memory[0], max(memory[loaded:unloaded]), memory[-1]
    assert peak > before + 0.9 * size
    assert after < peak - 0.5 * size
    assert [one["engine"]["array_bytes"] > size / 2 for one in (there[0], there[unloaded - 2], there[-1])] == [
        False,
        True,
        False,
    ]
    (region,) = data["regions"]
    assert region["label"] == "heavy"
    assert 0 < region["start_s"] < region["end_s"] < data["summary"]["duration_s"]
    assert data["summary"]["arrays_max_bytes"] >= size
    assert data["summary"]["servers_max_bytes"] == max(memory)


def test_a_server_is_asked_by_its_address(server: ServedProgram, mlxk: Program) -> None:
    server.chat()
    address = f"http://127.0.0.1:{server.port}"
    done = mlxk("monitor", "--url", address, "--seconds", "0.3", "--interval", "0.1")
    assert done.returncode == 0, done.stderr
    lines = list(map(json.loads, done.stdout.splitlines()))
    assert [fault for line in lines for fault in SAMPLE.iter_errors(line)] == []
    (served,) = lines[-1]["servers"]
    assert (served["url"], served["pid"], [each["name"] for each in served["models"]]) == (address, None, ["demo"])
    assert served["engine"]["generated_tokens"] >= 3
    assert "Model      demo in memory from 0.0s" in done.stderr


def test_a_server_that_wants_another_key_ends_the_samples_and_not_the_command(
    environment: dict[str, str], mlxk: Program, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("abc\n")
    with ServedProgram(tmp_path, environment, "--api-key-file", "keys") as served:
        address = f"http://127.0.0.1:{served.port}"
        around = mlxk("monitor", "--url", address, "--", "sh", "-c", "sleep 0.5; echo out; exit 3")
        assert (around.returncode, around.stdout) == (3, "out\n")
        assert "[the samples end early: " in around.stderr
        assert "Traceback" not in around.stderr
        alone = mlxk("monitor", "--url", address, "--seconds", "0.1")
        assert (alone.returncode, alone.stdout) == (1, "")


def test_a_server_that_is_not_there_is_said_and_the_rest_is_sampled(mlxk: Program) -> None:
    done = mlxk("monitor", "--url", "http://127.0.0.1:1", "--seconds", "0.2", "--interval", "0.1")
    assert done.returncode == 1
    assert {len(json.loads(line)["servers"]) for line in done.stdout.splitlines()} == {0}
    assert done.stderr.startswith("[the server cannot be asked: Connection refused]\n")


@pytest.mark.parametrize(
    ("command", "status"),
    [(("true",), 0), (("sh", "-c", "exit 7"), 7), (("sh", "-c", "kill -9 $$"), 137), (("sh", "-c", "kill $$"), 143)],
)
def test_the_exit_status_of_the_command_is_passed_on(mlxk: Program, command: tuple[str, ...], status: int) -> None:
    done = mlxk("monitor", "--json", "--interval", "0.1", "--", *command)
    assert (done.returncode, done.stdout) == (status, "")
    document = json.loads(done.stderr.splitlines()[-1])
    assert (document["status"], document["data"]["summary"]["exit_code"]) == ("success", status)


def test_standard_streams_are_those_of_the_command(mlxk: Program) -> None:
    done = mlxk("monitor", "--", "sh", "-c", "cat; echo talk >&2; echo --json", stdin="typed\n")
    assert (done.returncode, done.stdout) == (0, "typed\n--json\n")
    assert done.stderr.startswith("talk\nTime ")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_go_to_the_command_and_the_summary_still_comes(
    environment: dict[str, str], number: signal.Signals, status: int
) -> None:
    program = "import sys, time; print('up', flush=True); time.sleep(60)"
    monitor = subprocess.Popen(
        [*MLXK, "monitor", "--", sys.executable, "-c", f"import signal; signal.signal({int(number)}, 0); {program}"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert monitor.stdout is not None
    assert monitor.stdout.readline() == "up\n"
    monitor.send_signal(number)
    _, said = monitor.communicate(timeout=60)
    assert monitor.returncode == status
    assert f"Command    exit status {status}" in said


def test_ctrl_c_on_a_terminal_ends_the_command_which_may_answer_it(environment: dict[str, str]) -> None:
    program = "trap 'echo caught; exit 5' INT; echo up; while :; do sleep 0.1; done"
    terminal = pexpect.spawn(
        MLXK[0],
        [*MLXK[1:], "monitor", "--", "sh", "-c", program],
        env={**environment, "TERM": "dumb"},
        encoding="utf-8",
    )
    terminal.expect_exact("up")
    terminal.sendcontrol("c")
    terminal.expect_exact("caught")
    terminal.expect_exact("exit status 5")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 5


def test_a_watch_without_a_command_ends_with_a_signal_and_says_which(environment: dict[str, str]) -> None:
    for number, status in ((signal.SIGINT, 0), (signal.SIGTERM, 143)):
        monitor = subprocess.Popen(
            [*MLXK, "monitor", "--interval", "0.1"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert monitor.stdout is not None
        assert "elapsed_s" in json.loads(monitor.stdout.readline())
        monitor.send_signal(number)
        _, said = monitor.communicate(timeout=60)
        assert (monitor.returncode, said.startswith("Time ")) == (status, True)


def test_samples_come_no_sooner_than_asked_and_lines_follow_the_schema(mlxk: Program, tmp_path: Path) -> None:
    done = mlxk("monitor", "-o", "own.jsonl", "--seconds", "1", "--interval", "0.2", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    lines, summary = samples(tmp_path / "own.jsonl")
    assert [fault for line in lines for fault in SAMPLE.iter_errors(line)] == []
    assert 2 <= len(lines) <= 7
    assert all(line["elapsed_s"] >= 0.2 * index - 0.01 for index, line in enumerate(lines[:-1]))
    document = json.loads(done.stdout)
    assert document["data"]["summary"] == summary
    assert summary["ram_free_min_gb"] <= summary["ram_free_avg_gb"] <= summary["ram_free_max_gb"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("pytest", "-x"), 2, "Flags of the command stand after --: mlxk monitor -- COMMAND -x"),
        (("pytest", "tests"), 2, "Write: mlxk monitor -- pytest tests"),
        (("--",), 2, "no command stands after --"),
        (("--seconds", "1", "--", "true"), 2, "--seconds goes without a command"),
        (("-o", "-", "--", "true"), 2, "-o: standard output is that of the command"),
        (("--interval", "0", "--", "true"), 2, "'0' is no number of seconds from 0.05 to 86400"),
        (("--interval", "nan", "--", "true"), 2, "'nan' is no number of seconds"),
        (("--api-key-file", "keys"), 2, "--api-key-file goes with --url"),
        (("--url", "127.0.0.1:8000"), 2, "--url takes an address"),
        (("-o", "no/such/file", "--", "true"), 1, "'no/such/file' cannot be written: No such file or directory"),
        (("--", "nosuchcommand"), 127, "there is no command 'nosuchcommand'"),
        (("--", "./plain"), 126, "'./plain' cannot be run: Exec format error"),
    ],
)
def test_what_cannot_be_watched_is_refused_by_name(
    mlxk_here: Program, tmp_path: Path, arguments: tuple[str, ...], status: int, said: str
) -> None:
    (tmp_path / "plain").write_bytes(b"\x00\x01")
    (tmp_path / "plain").chmod(0o755)
    done = mlxk_here("monitor", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_that_is_not_there_leaves_the_file_as_it_is(mlxk: Program, tmp_path: Path) -> None:
    (tmp_path / "kept.jsonl").write_text("kept\n")
    assert mlxk("monitor", "-o", "kept.jsonl", "--", "nosuchcommand").returncode == 127
    assert mlxk("monitor", "-o", "new.jsonl", "--", "nosuchcommand").returncode == 127
    assert (tmp_path / "kept.jsonl").read_text() == "kept\n"
    assert not (tmp_path / "new.jsonl").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no full device")
def test_a_full_disk_does_not_end_the_command(mlxk: Program) -> None:
    done = mlxk("monitor", "-o", "/dev/full", "--", "sh", "-c", "exit 3")
    assert done.returncode == 3
    assert "[samples are missing in '/dev/full': No space left on device]" in done.stderr
    alone = mlxk("monitor", "-o", "/dev/full", "--seconds", "0.1")
    assert alone.returncode == 1


def test_a_reader_that_leaves_ends_the_watch(environment: dict[str, str]) -> None:
    line = "set -o pipefail; " + " ".join(MLXK) + " monitor --interval 0.1 | head -2"
    done = subprocess.run(
        ["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, len(done.stdout.splitlines()), "Traceback" in done.stderr) == (141, 2, False)


def test_a_stopped_command_gives_the_terminal_back(environment: dict[str, str]) -> None:
    # The shell of a user: Ctrl-Z stops both, fg continues both.
    shell = pexpect.spawn("bash", ["--norc", "-i"], env={**environment, "PS1": "$ ", "TERM": "dumb"}, encoding="utf-8")
    shell.sendline(f"{MLXK[0]} -m mlxk monitor -- sh -c 'echo up; sleep 1; echo done; exit 4'")
    shell.expect_exact("up\r\n")
    shell.sendcontrol("z")
    shell.expect("Stopped")
    shell.sendline("fg")
    shell.expect_exact("done\r\n")
    shell.expect_exact("exit status 4")
    shell.sendline("echo status=$?")
    shell.expect_exact("status=4")
    shell.close()
