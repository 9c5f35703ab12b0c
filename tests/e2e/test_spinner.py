"""The spinner of a slow start: on the terminal of standard error, and never in the data of standard output."""

import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e


def test_a_spinner_is_shown_on_standard_error_while_standard_output_has_the_answer_alone(
    program_environment: dict[str, str], tmp_path: Path
) -> None:
    terminal, slave = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(terminal, 4096):
                shown.append(data)
        except OSError:
            pass  # The program has closed its end.

    reader = threading.Thread(target=read)
    reader.start()
    process = subprocess.Popen(
        [sys.executable, "-m", "mlxk", "run", "demo", "What is mlxk?"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=slave,
        env={**program_environment, "TERM": "xterm"},
        cwd=tmp_path,
    )
    os.close(slave)
    answer, _ = process.communicate(timeout=120)
    reader.join(timeout=60)
    os.close(terminal)
    assert process.returncode == 0
    assert b"".join(shown).strip() != b""
    assert answer.startswith(b"mlxk is")
    assert b"\x1b" not in answer
