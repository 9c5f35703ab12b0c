"""``mlxk prune`` in a real pseudo-terminal: what it shows, what it asks, and what an answer does."""

import sys
from pathlib import Path

import pexpect
import pytest

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(("answer", "stays"), [("n", True), ("", True), ("y", False)])
def test_the_waste_is_shown_before_the_question_and_only_a_yes_removes_it(
    program_environment: dict[str, str], answer: str, stays: bool
) -> None:
    partial = Path(program_environment["HF_HOME"]) / "hub" / "models--org--half" / "blobs" / "0.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"half")
    terminal = pexpect.spawn(
        sys.executable, ["-m", "mlxk", "prune"], env=program_environment, encoding="utf-8", timeout=60
    )
    terminal.expect_exact("org/half: a download that was not finished, entirely")
    terminal.expect_exact("[y/N]: ")
    terminal.sendline(answer)
    terminal.expect(pexpect.EOF)
    terminal.wait()
    assert (terminal.exitstatus, partial.exists()) == (0, stays)
