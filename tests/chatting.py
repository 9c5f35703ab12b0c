"""The chat on a pseudo-terminal, for tests."""

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pexpect

PROMPT = ">>> "


def spawn(environment: Mapping[str, str], folder: Path, *arguments: str, **variables: str) -> "pexpect.spawn[str]":
    """Start the program on a terminal.

    Args:
        environment: That of the program.
        folder: Its working directory.
        arguments: Of ``mlxk``.
        variables: Further variables; ``TERM`` is ``dumb`` unless one of them.
    """
    return pexpect.spawn(
        sys.executable,
        ["-m", "mlxk", *arguments],
        env={**os.environ, **environment, "TERM": "dumb", "NO_COLOR": "1", **variables},
        cwd=str(folder),
        encoding="utf-8",
        codec_errors="replace",
        timeout=60,
        dimensions=(40, 200),
    )


def start(environment: Mapping[str, str], folder: Path, *arguments: str, **variables: str) -> "pexpect.spawn[str]":
    """Start a chat and wait until it asks for a line; for arguments see ``spawn``."""
    process = spawn(environment, folder, *arguments, **variables)
    process.expect_exact(PROMPT.strip())
    return process


def say(terminal: "pexpect.spawn[str]", line: str, expected: str) -> None:
    """Type a line and wait for what must appear, then for the next prompt."""
    terminal.sendline(line)
    terminal.expect_exact(expected)
    terminal.expect_exact(PROMPT)


def end(terminal: "pexpect.spawn[str]") -> None:
    """End the program by all means; on a busy machine, a killed one may take a while to be gone."""
    for _ in range(100):
        try:
            terminal.close(force=True)
        except pexpect.ExceptionPexpect:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the program does not end")


def leave(terminal: "pexpect.spawn[str]") -> None:
    """Press Ctrl-D until the program has left: a key that comes before the line editor listens is lost."""
    for _ in range(10):
        terminal.sendcontrol("d")
        if terminal.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=2) == 0:
            terminal.wait()
            return
    raise AssertionError("the chat did not leave")
