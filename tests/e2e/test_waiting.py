"""A command that takes long says on a terminal what it does."""

import sys
from pathlib import Path

import pexpect
import pytest
from models.tiny_models import build

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


def started(environment: dict[str, str], folder: Path, *arguments: str) -> "pexpect.spawn[str]":
    """Start the program on a terminal."""
    return pexpect.spawn(
        sys.executable,
        ["-c", SLOW, *arguments],
        env={**environment, "TERM": "xterm-256color"},
        cwd=str(folder),
        encoding="utf-8",
        timeout=60,
        dimensions=(40, 120),
    )


def test_the_wait_before_and_after_the_bars_of_a_conversion_is_explained(
    program_environment: dict[str, str], tmp_path: Path
) -> None:
    process = started(program_environment, tmp_path, "convert", "demo", "./copy", "--quantize", "8")
    shown: str = process.read()
    process.close()
    assert process.exitstatus == 0, shown
    assert "Reading the model" in shown


@pytest.mark.mlx
def test_the_progress_of_a_long_prompt_is_shown_and_an_interrupt_ends_it(
    program_environment: dict[str, str], tmp_path: Path
) -> None:
    build(tmp_path / "llama", max_position_embeddings=131_072, num_hidden_layers=8)
    (tmp_path / "prompt.txt").write_text("The quick brown fox. " * 8000)
    process = started(program_environment, tmp_path, "run", "./llama", "And now?", "--file", "prompt.txt")
    process.expect(r"Reading the prompt: [\d,]+ of 4\d,\d\d\d tokens")
    process.sendintr()
    process.expect(pexpect.EOF)
    process.close()
    assert process.exitstatus == 130
