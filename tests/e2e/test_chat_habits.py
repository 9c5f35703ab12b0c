"""The chat as users of other programs type in it: words after a command, settings, quoted paths, keys of a shell."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
from chatting import PROMPT, end, say, start

pytestmark = pytest.mark.e2e


@pytest.fixture
def terminal(program_environment: dict[str, str], tmp_path: Path) -> Iterator["pexpect.spawn[str]"]:
    """Start a chat on a pseudo-terminal."""
    process = start(program_environment, tmp_path, "run", "demo")
    yield process
    end(process)


def test_words_after_a_command_that_takes_none_are_refused_and_nothing_is_lost(terminal: "pexpect.spawn[str]") -> None:
    for _ in range(2):
        say(terminal, "Hello!", "Hello! How can I help you today?")
    for typed in ("undo 2", "clear all", "retry more politely", "stats of all", "copy 1", "show system", "quit now"):
        name = typed.split()[0]
        say(terminal, f"/{typed}", f"/{name} takes nothing after it (got '{typed.partition(' ')[2]}')")
    say(terminal, "/show", "turns: 2")


def test_help_is_about_the_command_that_is_named(terminal: "pexpect.spawn[str]") -> None:
    terminal.sendline("/help set")
    terminal.expect_exact("/set NAME VALUE")
    terminal.expect_exact(PROMPT)
    assert "/retry" not in terminal.before
    say(terminal, "/help /compact", "/summarize [N]")
    say(terminal, "/help sav", "Did you mean /save?")
    say(terminal, "/usr/lib is full", 'A message that begins with a slash stands between """.')


def test_settings_are_taken_as_others_write_them_or_named(terminal: "pexpect.spawn[str]") -> None:
    for typed, said in {
        "/set parameter temperature 0.5": "temperature is 0.5",
        "/set top_p=0.5": "top_p is 0.5",
        "/set seed = 1": "seed is 1",
        "/set stop a=b": "stop is a=b",
        "/set": "/set needs a name",
        "/set top_k 1.5": "top_k must be a whole number (got '1.5')",
        "/set num_predict 5": "Did you mean max_tokens?",
        "/set system Be brief.": "Did you mean /system TEXT?",
        "/set think": "Did you mean thinking?",
        "/set thinking": "thinking is set",
        "/show": "thinking: yes",
    }.items():
        say(terminal, typed, said)


def test_a_path_in_quotes_or_with_escapes_is_the_file(terminal: "pexpect.spawn[str]", tmp_path: Path) -> None:
    say(terminal, "Hello!", "Hello! How can I help you today?")
    for typed in ('"a talk.json"', r"b\ talk.json", "c talk.json", "'d talk.json'"):
        say(terminal, f"/save {typed}", "saved to")
        say(terminal, f"/load {typed}", "loaded 1 turn")
    assert sorted(each.name for each in tmp_path.glob("*.json")) == [f"{each} talk.json" for each in "abcd"]


def test_a_model_that_cannot_chat_is_refused_when_it_is_named(terminal: "pexpect.spawn[str]") -> None:
    say(terminal, "/model demo-speech", "'demo-speech' does not generate text")
    say(terminal, "/model", "the model is demo;")


def test_reasoning_is_switched_within_a_chat(terminal: "pexpect.spawn[str]") -> None:
    say(terminal, "/set thinking", "thinking is set")
    say(terminal, "Hello!", "I greet back.")
    say(terminal, "/set nothinking", "nothinking is set")
    terminal.sendline("Hello!")
    terminal.expect_exact("How can I help you today?")
    assert "I greet back." not in terminal.before


def test_ctrl_z_hands_the_terminal_back_and_the_line_goes_on(
    program_environment: dict[str, str], tmp_path: Path
) -> None:
    environment = {**os.environ, **program_environment, "TERM": "dumb", "PS1": "shell> "}
    shell = pexpect.spawn(
        "bash", ["--norc", "-i"], env=environment, cwd=str(tmp_path), encoding="utf-8", timeout=60, dimensions=(40, 200)
    )
    shell.sendline(f"{sys.executable} -m mlxk run demo")
    shell.expect_exact(PROMPT)
    shell.send("Hel")
    shell.expect_exact("Hel")
    shell.sendcontrol("z")
    shell.expect_exact("Stopped")
    shell.sendline("fg")
    shell.expect_exact("-m mlxk run demo\r\n")
    shell.sendline("lo!")
    shell.expect_exact("How can I help you today?")
    end(shell)
