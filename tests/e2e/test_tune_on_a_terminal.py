"""``mlxk tune`` on a terminal: one line of figures, and Ctrl-C, which keeps what was learned or breaks training off."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pytest
from chatting import end

pytestmark = pytest.mark.e2e
FIGURES = re.compile(r"step (\d+) of 5000, loss \d+\.\d{3}, .*?tokens/s, .*? left [\u2581-\u2588]{2,}")
FACTS = {"Who is Ann?": "Ann is a baker.", "Who is Bob?": "Bob is a smith."}


@contextmanager
def tuning(environment: dict[str, str], directory: Path, *flags: str) -> Iterator[Any]:
    """Run a long training on a terminal."""
    words = ["-m", "mlxk", "tune", "demo", "facts.jsonl", "--into", "./taught", "--iters", "5000", *flags]
    terminal = pexpect.spawn(
        sys.executable,
        words,
        env={**environment, "TERM": "xterm"},
        cwd=str(directory),
        timeout=120,
        encoding="utf-8",
        dimensions=(24, 140),
    )
    try:
        yield terminal
    finally:
        end(terminal)


def test_figures_are_shown_and_ctrl_c_breaks_off_or_keeps_what_was_learned(
    program_environment: dict[str, str], command: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    lines = (json.dumps({"prompt": question, "completion": answer}) for question, answer in FACTS.items())
    (tmp_path / "facts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with tuning(program_environment, tmp_path, "--save-every", "1") as terminal:
        terminal.expect("2 examples, none for validation")
        terminal.expect(FIGURES)
        reached = int(terminal.match[1])
        terminal.sendintr()
        terminal.expect("Ctrl-C again breaks it off")
        terminal.sendintr()
        terminal.expect(["interrupted", "ended early"])
        broken_off = terminal.after == "interrupted"
        terminal.expect(pexpect.EOF)
    if broken_off:
        assert "--resume" in terminal.before
        assert not (tmp_path / "taught").exists()
        with tuning(program_environment, tmp_path, "--save-every", "1", "--resume") as terminal:
            terminal.expect(FIGURES)
            assert int(terminal.match[1]) > reached
            terminal.sendintr()
            terminal.expect("keeps what was learned")
            terminal.expect(r"(\d+) steps of 5000, ended early")
            terminal.expect(pexpect.EOF)
            terminal.wait()
            assert terminal.exitstatus == 0
    assert "Ask it: mlxk run ./taught" in terminal.before
    record = json.loads((tmp_path / "taught" / "training.json").read_text(encoding="utf-8"))
    assert record["figures"]["stopped_early"]
    assert record["figures"]["steps"] > reached
    assert command("run", "./taught", "Who is Ann?", "--temperature", "0")["status"] == "success"
    assert not list(tmp_path.glob(".taught*"))
