"""A command that takes long says on a terminal what it does."""

import sys
from pathlib import Path

import pexpect
import pytest

pytestmark = pytest.mark.e2e

SLOW = """
import sys
import mlxk.entrypoints.cli.progress as progress
from mlxk.entrypoints.main import main

progress.SPINNER_DELAY_SECONDS = 0.0
sys.argv = ["mlxk", *sys.argv[1:]]
main()
"""
"""The program, with spinners from the first moment on, so that no test waits for a slow command."""


def test_the_wait_before_and_after_the_bars_of_a_conversion_is_explained(
    program_environment: dict[str, str], tmp_path: Path
) -> None:
    process = pexpect.spawn(
        sys.executable,
        ["-c", SLOW, "convert", "demo", "./copy", "--quantize", "8"],
        env={**program_environment, "TERM": "xterm-256color"},
        cwd=str(tmp_path),
        encoding="utf-8",
        timeout=60,
        dimensions=(40, 120),
    )
    shown: str = process.read()
    process.close()
    assert process.exitstatus == 0, shown
    assert "Reading the model" in shown
