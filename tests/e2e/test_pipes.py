"""Standard input beside a prompt, in shells and by the kinds of standard input that programs inherit."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Program = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., "subprocess.Popen[str]"]
pytestmark = pytest.mark.e2e

WAITING = "waiting for standard input; --no-stdin goes without it\n"
JOINED = "[joined to the prompt: standard input, {}]\n"
QUESTION = "Summarize this"
SAMPLES = Path(__file__).parents[2] / "adapters" / "builtin" / "models"
ASK = ("run", "demo", QUESTION, "--show-prompt", "--json")


def prompt_of(stdout: str) -> str:
    """Return the prompt that a run would have given the model."""
    found: str = json.loads(stdout)["data"]["prompt"]
    return found


@pytest.fixture
def shell(program_environment: dict[str, str], tmp_path: Path) -> Program:
    """Run a line of bash, in which ``mlxk`` is the program; ``lines`` is a file of three lines."""
    (tmp_path / "lines").write_text("one\ntwo\nthree\n")
    (tmp_path / "note.txt").write_text("Olga is a cat.\n")

    def run(line: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["bash", "-c", f'mlxk() {{ {sys.executable} -m mlxk "$@"; }}\n{line}'],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=program_environment,
            cwd=tmp_path,
            timeout=240,
            check=False,
        )

    return run


@pytest.fixture
def start(program_environment: dict[str, str], tmp_path: Path) -> Start:
    """Start the program on a standard input of any kind."""

    def run(stdin: Any, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "mlxk", *(arguments or ASK)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=program_environment,
            cwd=tmp_path,
        )

    return run


@pytest.mark.parametrize(
    "line",
    [
        "cat note.txt | mlxk",
        "mlxk < note.txt",
        "mlxk <<< 'Olga is a cat.'",
        "cat note.txt | MLXK2_ENABLE_PIPES=1 mlxk",
    ],
)
def test_piped_text_stands_before_the_words_and_is_said(shell: Program, line: str) -> None:
    done = shell(line.replace("mlxk", f"mlxk run demo '{QUESTION}' --show-prompt --json"))
    assert prompt_of(done.stdout) == f"Olga is a cat.\n\n\n{QUESTION}"
    assert done.stderr == JOINED.format("1 line")


def test_a_slow_pipe_is_waited_for_and_that_is_said(start: Start) -> None:
    with start(subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        assert process.stderr.readline() == WAITING
        stdout, stderr = process.communicate("late\nbut there\n")
    assert (prompt_of(stdout), stderr) == (f"late\nbut there\n\n\n{QUESTION}", JOINED.format("2 lines"))


def test_an_open_pipe_that_stays_silent_is_waited_for_until_it_is_interrupted(
    start: Start,
) -> None:
    with start(subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == WAITING
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    assert process.returncode == 130


def test_an_open_pipe_is_not_touched_with_no_stdin(start: Start) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"kept")
    with start(reader, *ASK, "--no-stdin") as process:
        stdout, stderr = process.communicate()
    assert (prompt_of(stdout), stderr, os.read(reader, 10)) == (QUESTION, "", b"kept")
    os.close(reader)
    os.close(writer)


def test_a_pipe_that_ends_empty_changes_nothing(mlxk: Program) -> None:
    for stdin in ("", "\n"):
        done = mlxk(*ASK, stdin=stdin)
        assert (prompt_of(done.stdout), done.stderr) == (QUESTION, "")


LOOP = """while read -r line; do mlxk run demo "$line" {} --show-prompt --json | grep '"prompt"'; done"""


def lines_of(stdout: str) -> list[str]:
    """Return the prompts of a loop."""
    return [json.loads(f"{{{line.strip().rstrip(',')}}}")["prompt"] for line in stdout.splitlines()]


def test_only_line_breaks_are_counted_as_lines(shell: Program) -> None:
    done = shell(f"printf 'one\\fone\\r\\ntwo\\n' | mlxk run demo '{QUESTION}' --show-prompt --json")
    assert (done.returncode, done.stderr) == (0, JOINED.format("2 lines"))


def test_a_loop_over_a_file_keeps_its_lines(shell: Program) -> None:
    done = shell(f"{LOOP.format('')} < lines")
    assert lines_of(done.stdout) == ["one", "two", "three"]
    assert done.stderr.splitlines() == 2 * [
        "[standard input is a file that was read in part, so it is not joined; '-' reads the rest]"
    ]


def test_a_loop_over_a_pipe_keeps_its_lines_with_no_stdin(
    shell: Program,
) -> None:
    done = shell(f"cat lines | {LOOP.format('--no-stdin')}")
    assert (lines_of(done.stdout), done.stderr) == (["one", "two", "three"], "")
    eaten = shell(f"cat lines | {LOOP.format('')}")
    assert lines_of(eaten.stdout) == ["two\nthree\n\n\none"]
    assert eaten.stderr == JOINED.format("2 lines")


@pytest.mark.parametrize(
    ("redirection", "said"),
    [
        ("</dev/null", ""),
        ("<&-", ""),
        ("0>written", ""),
        ("</dev/zero", "[standard input is a device, so it is not joined; '-' reads it]\n"),
    ],
)
def test_devices_and_a_closed_standard_input_are_never_read(shell: Program, redirection: str, said: str) -> None:
    done = shell(f"mlxk run demo '{QUESTION}' --show-prompt --json {redirection}")
    assert (prompt_of(done.stdout), done.stderr) == (QUESTION, said)


def test_a_socket_is_not_read_beside_words_and_that_is_said(start: Start) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"kept")
        with start(theirs) as process:
            stdout, stderr = process.communicate()
        assert theirs.recv(10) == b"kept"
    assert prompt_of(stdout) == QUESTION
    assert stderr == "[standard input is a socket, so it is not joined; '-' reads it]\n"


def test_a_terminal_is_not_read_beside_words(start: Start) -> None:
    keyboard, terminal = pty.openpty()
    os.write(keyboard, b"typed\n\x04")
    with start(terminal) as process:
        stdout, stderr = process.communicate()
    assert (prompt_of(stdout), stderr) == (QUESTION, "")
    os.write(keyboard, b"\x04")
    with start(terminal, "run", "demo", "-", "--show-prompt", "--json") as process:
        stdout, _ = process.communicate()
    assert prompt_of(stdout) == "typed\n"
    os.close(keyboard)
    os.close(terminal)


@pytest.mark.parametrize(("flags", "value"), [(["--no-stdin"], ""), ([], "0"), (["--no-stdin"], "1"), ([], "off")])
def test_what_is_switched_off_is_read_for_a_dash_only(mlxk_here: Program, flags: list[str], value: str) -> None:
    done = mlxk_here(*ASK, *flags, stdin="text", MLXK2_ENABLE_PIPES=value)
    assert (prompt_of(done.stdout), done.stderr) == (QUESTION, "")
    done = mlxk_here(*ASK, *flags, "-", stdin="text", MLXK2_ENABLE_PIPES=value)
    assert prompt_of(done.stdout) == f"text\n\n{QUESTION}"
    assert ("--no-stdin has no effect" in done.stderr) == bool(flags)


@pytest.mark.parametrize(
    ("flags", "value", "hint"),
    [(["--no-stdin"], "", "--no-stdin leaves standard input unread"), ([], "0", "MLXK2_ENABLE_PIPES=0 leaves")],
)
def test_without_words_what_is_switched_off_is_no_prompt(
    mlxk: Program, flags: list[str], value: str, hint: str
) -> None:
    done = mlxk("run", "demo", *flags, stdin="What is mlxk?", MLXK2_ENABLE_PIPES=value)
    assert (done.returncode, done.stdout) == (2, "")
    assert "run needs a prompt" in done.stderr
    assert hint in done.stderr


@pytest.mark.parametrize("words", [(), ("-",), ("Who is it?",)], ids=["alone", "dash", "words"])
def test_a_byte_order_mark_is_no_part_of_the_prompt(mlxk_here: Program, words: tuple[str, ...]) -> None:
    ask = ("run", "demo", "--show-prompt", "--json", *words)
    marked, plain = (mlxk_here(*ask, stdin=f"{mark}Olga is a cat.") for mark in ("\ufeff", ""))
    assert prompt_of(marked.stdout) == prompt_of(plain.stdout)


def test_a_chat_s_first_message_has_the_piped_text(mlxk: Program) -> None:
    done = mlxk("run", "demo", "--chat", "name?", stdin="What is mlxk?")
    assert done.stderr == JOINED.format("1 line")
    assert done.stdout


def test_piped_text_is_the_prompt_about_an_image(mlxk_here: Program) -> None:
    ask = ("run", "demo-vision", "--image", "demo-vision/blue-square.jpg", "--json", "--show-prompt")
    done = mlxk_here(*ask, stdin="What color is it?")
    assert prompt_of(done.stdout) == "What color is it?"
    done = mlxk_here(*ask, stdin="")
    assert prompt_of(done.stdout) == "Describe the image."
    done = mlxk_here(*ask[:4], "What color is it?", *ask[4:], stdin="Look.")
    assert prompt_of(done.stdout) == "Look.\n\nWhat color is it?"


DRAWING = SAMPLES / "demo-vision" / "red-circle.png"
SPOKEN = SAMPLES / "demo-speech" / "question.wav"


def test_an_image_and_sound_go_down_a_pipe(mlxk_here: Program) -> None:
    seen = mlxk_here("run", "demo-vision", "What is it?", "--image", "-", "--json", stdin=DRAWING.read_bytes())
    assert "red" in json.loads(seen.stdout)["data"]["response"]
    heard = mlxk_here("run", "demo-speech", "--audio", "-", stdin=SPOKEN.read_bytes()[:60_000])
    assert heard.stdout == "What is mlxk?\n"
    assert "joined" not in seen.stderr + heard.stderr


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        (
            ("demo-vision", "What is it?"),
            DRAWING.read_bytes(),
            "standard input is no text\nShow an image with --image -",
        ),
        (("demo",), SPOKEN.read_bytes()[:9000], "standard input is no text"),
        (("demo-vision", "--image", "-"), b"", "--image: standard input is empty"),
        (("demo-vision", "--image", "-"), b"words", "is not an image of a known format"),
        (("demo-vision", "-", "--image", "-"), b"", "--image - and another '-' exclude each other"),
        (("demo-vision", "--image", "-", "--video", "-"), b"", "--image - and another '-' exclude each other"),
        (("demo-vision", "--image", "https://example.org/a.png"), b"", "is an address; name a file"),
        (("demo-speech", "--audio", "data:audio/wav;base64,UklGRg=="), b"", "is a data URL; name a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_media_that_cannot_be_had_are_refused_with_the_way_to_show_them(
    arguments: tuple[str, ...], stdin: bytes, said: str, mlxk_here: Program
) -> None:
    done = mlxk_here("run", *arguments, stdin=stdin)
    assert (done.returncode != 0, done.stdout, said in done.stderr) == (True, "", True), done.stderr
