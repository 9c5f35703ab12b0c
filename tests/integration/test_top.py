"""``mlxk top`` on a pseudo-terminal, in a pipe and as JSON, beside servers that work, go and come back."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
from chatting import end
from serving.program import ServedProgram

Program = Callable[..., "subprocess.CompletedProcess[str]"]
Terminal = Callable[..., "pexpect.spawn[str]"]

pytestmark = pytest.mark.mlx
MLXK = (sys.executable, "-m", "mlxk")
ENTERED, LEFT, CURSOR = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"


@pytest.fixture
def server(program_environment: dict[str, str], tmp_path: Path) -> Iterator[ServedProgram]:
    with ServedProgram(tmp_path, program_environment, "--model", "demo") as served:
        yield served


@pytest.fixture
def terminal(program_environment: dict[str, str], tmp_path: Path) -> Iterator[Terminal]:
    """Starts ``top`` on a terminal, which has ended afterwards."""
    started: list[pexpect.spawn[str]] = []

    def start(*arguments: str, rows: int = 24, columns: int = 100, **variables: str) -> "pexpect.spawn[str]":
        process = pexpect.spawn(
            MLXK[0],
            [*MLXK[1:], "top", "--interval", "0.2", *arguments],
            env={**program_environment, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **variables},
            cwd=str(tmp_path),
            encoding="utf-8",
            timeout=60,
            dimensions=(rows, columns),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        end(process)


def words(text: str) -> str:
    """Return what is drawn without the sequences that move and paint."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\x08\r\n]", " ", text)


def shows(process: "pexpect.spawn[str]", pattern: str) -> None:
    """Wait until the screen shows something: a new size has it drawn as a whole, not only what has changed."""
    for attempt in range(60):
        process.setwinsize(24, 100 + attempt % 2)
        if process.expect([pattern, pexpect.TIMEOUT], timeout=0.5) == 0:
            return
    raise AssertionError(f"{pattern} is not shown")


def ended(process: "pexpect.spawn[str]") -> tuple[int | None, str]:
    """Wait for the end; return the exit status and what was drawn last."""
    process.expect(pexpect.EOF)
    process.wait()
    return process.exitstatus, process.before or ""


def test_a_screen_shows_the_work_of_a_server_and_is_gone_in_the_end(server: ServedProgram, terminal: Terminal) -> None:
    process = terminal()
    process.expect_exact(ENTERED)
    process.expect_exact(f"http://127.0.0.1:{server.port}")
    process.expect_exact("0 running, 0 waiting")
    process.expect_exact("demo")
    enough = threading.Event()

    def ask() -> None:
        while not enough.is_set():
            server.chat(max_tokens=1000, ignore_eos=True)

    asking = threading.Thread(target=ask)
    asking.start()
    shows(process, r"1 running, 0 waiting, [1-9]\d*\.\d tokens/s generated")
    shows(process, "[▂▃▄▅▆▇█]+▁* at most [1-9]")
    enough.set()
    asking.join()
    process.send("q")
    status, last = ended(process)
    assert status == 0
    assert last.rindex(LEFT) < last.rindex(CURSOR)
    assert "Traceback" not in last


def test_a_screen_follows_the_size_of_its_terminal(server: ServedProgram, terminal: Terminal) -> None:
    process = terminal(rows=24, columns=100)
    process.expect_exact("Tokens/s")
    process.setwinsize(4, 30)
    process.expect_exact("…")
    process.send("q")
    assert ended(process)[0] == 0
    small = terminal("--readings", "2", rows=4, columns=30)
    status, drawn = ended(small)
    assert (status, "Tokens/s" in drawn, "mlxk top" in drawn) == (0, False, True)


@pytest.mark.parametrize(
    ("leave", "status"),
    [
        (lambda process: process.sendcontrol("c"), 0),
        (lambda process: process.sendcontrol("d"), 0),
        (lambda process: process.send("q"), 0),
        (lambda process: os.kill(process.pid, signal.SIGINT), 0),
        (lambda process: os.kill(process.pid, signal.SIGTERM), 143),
        (lambda process: os.kill(process.pid, signal.SIGHUP), 129),
    ],
    ids=["Ctrl-C", "Ctrl-D", "q", "SIGINT", "SIGTERM", "SIGHUP"],
)
def test_the_terminal_is_as_before_however_it_ends(
    terminal: Terminal, leave: Callable[["pexpect.spawn[str]"], object], status: int
) -> None:
    process = terminal()
    process.expect_exact("no server of yours is running; waiting for one")
    leave(process)
    found, last = ended(process)
    assert found == status
    assert LEFT in last
    assert CURSOR in last


def test_a_shell_has_its_modes_again_after_a_screen(program_environment: dict[str, str], tmp_path: Path) -> None:
    shell = pexpect.spawn(
        "bash",
        ["--norc", "-i"],
        cwd=str(tmp_path),
        env={**program_environment, "PS1": "$ ", "TERM": "xterm", "LC_ALL": "C.UTF-8"},
        encoding="utf-8",
        timeout=60,
    )
    shell.sendline("stty -a > before")
    shell.sendline(f"{' '.join(MLXK)} top --interval 0.2")
    shell.expect_exact("waiting for one")
    shell.sendcontrol("z")
    shell.expect("Stopped")
    shell.sendline("fg")
    shell.expect_exact("waiting for one")
    shell.send("q")
    shell.expect_exact(LEFT)
    shell.sendline("stty -a > after; cmp before after && echo alike=$?")
    shell.expect_exact("alike=0")
    end(shell)


def test_a_server_that_goes_away_is_said_and_found_again(
    program_environment: dict[str, str], tmp_path: Path, terminal: Terminal
) -> None:
    with ServedProgram(tmp_path, program_environment) as first:
        process = terminal("--url", f"http://127.0.0.1:{first.port}")
        process.expect_exact("0 running")
    process.expect_exact("is gone since")
    with ServedProgram(tmp_path, program_environment, "--port", str(first.port)):
        shows(process, "0 running")
        process.send("q")
        assert ended(process)[0] == 0


@pytest.mark.parametrize(("variables", "bold"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_headings_stand_out_where_that_is_wanted(terminal: Terminal, variables: dict[str, str], bold: bool) -> None:
    status, drawn = ended(terminal("--readings", "1", **variables))
    assert status == 0
    assert ("\x1b[0;1m" in drawn) == bold
    assert not re.search(r"\x1b\[[0-9;]*[34][0-7]m", drawn)


def test_a_terminal_without_unicode_gets_letters(server: ServedProgram, terminal: Terminal) -> None:
    status, drawn = ended(terminal("--readings", "3", columns=40, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"))
    assert status == 0
    assert words(drawn).isascii()
    assert "at most 0.0 tokens/s" in words(drawn)


def test_without_a_terminal_and_on_a_dumb_one_there_are_lines(
    server: ServedProgram, terminal: Terminal, mlxk: Program
) -> None:
    line = re.compile(
        rf"\d\d:\d\d:\d\d http://127\.0\.0\.1:{server.port} demo, 0 running, 0 waiting(, 0\.0 tokens/s generated, "
        r"0\.0 tokens/s of prompts)?, memory [\d.]+MB, arrays [\d.]+MB \(weights [\d.]+MB, kept prompts [\d.]+[KM]?B, "
        r"answers and others [\d.]+[KM]?B\)"
    )
    done = mlxk("top", "--readings", "3", "--interval", "0.1")
    assert (done.returncode, done.stderr) == (0, "")
    assert [bool(line.fullmatch(each)) for each in done.stdout.splitlines()] == [True] * 3, done.stdout
    status, drawn = ended(terminal("--readings", "2", columns=300, TERM="dumb"))
    assert (status, "\x1b" in drawn) == (0, False)
    assert [bool(line.fullmatch(each)) for each in drawn.splitlines()] == [True] * 2, drawn


def test_json_is_an_object_a_line(server: ServedProgram, mlxk: Program) -> None:
    server.chat(max_tokens=5)
    done = mlxk("top", "--readings", "2", "--interval", "0.2", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = (json.loads(each)["data"] for each in done.stdout.splitlines())
    (served,) = first["servers"]
    assert (served["url"], served["generated_tokens_per_second"]) == (f"http://127.0.0.1:{server.port}", None)
    assert served["engine"]["generated_tokens"] >= 5
    assert second["servers"][0]["generated_tokens_per_second"] == 0.0
    assert second["servers"][0]["memory"]["memory_bytes"] > 10**7
    assert 0 < second["elapsed_seconds"] < 30


def test_ctrl_c_ends_lines_and_a_reader_that_leaves_ends_them_too(program_environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        [*MLXK, "top", "--interval", "0.1"],
        env=program_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "no server of yours is running; waiting for one" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
    line = f"set -o pipefail; {' '.join(MLXK)} top --interval 0.1 | head -1"
    done = subprocess.run(["bash", "-c", line], env=program_environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_server_with_a_key_is_asked_with_it(
    program_environment: dict[str, str], tmp_path: Path, mlxk: Program
) -> None:
    for name, key in (("keys", "sesame"), ("other", "melon")):
        (tmp_path / name).write_text(f"{key}\n")
        (tmp_path / name).chmod(0o600)
    with ServedProgram(tmp_path, program_environment, "--api-key-file", "keys") as served:
        address = ("--url", f"http://127.0.0.1:{served.port}", "--readings", "1")
        done = mlxk("top", *address, "--api-key-file", "keys")
        assert (done.returncode, "no model, 0 running, 0 waiting" in done.stdout) == (0, True)
        for key in ((), ("--api-key-file", "other")):
            refused: Any = mlxk("top", *address, *key)
            assert (refused.returncode, refused.stdout) == (1, "")
            assert "the server wants another key (HTTP 401)" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--readings", "0"), "'0' is no whole number from 1 to"),
        (("--interval", "soon"), "'soon' is no number of seconds"),
        (("--url", "localhost"), "--url takes an address"),
        (("--api-key-file", "keys"), "--api-key-file goes with --url"),
    ],
)
def test_what_cannot_be_shown_is_refused_by_name(mlxk_here: Program, arguments: tuple[str, ...], said: str) -> None:
    done = mlxk_here("top", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
