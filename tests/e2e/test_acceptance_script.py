"""The script that a person runs on a Mac: here without a Mac, with the models that ship with the program."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "mac_acceptance.sh"
SCHEMA = ROOT.parent / "shared" / "data" / "benchmarks" / "report-v0.2.2.schema.json"
PROGRAM = Path(sys.executable).with_name("mlxk")
STEPS = [
    "machine",
    "doctor",
    "built_in_models",
    "gpu",
    "bench_demo",
    "monitor",
    "clone",
    "names",
    "serve",
    "machine_after",
]

pytestmark = [pytest.mark.e2e, pytest.mark.mlx]


def run(*words: str, environment: dict[str, str], folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(SCRIPT), *words],
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_without_a_mac_every_other_step_passes_and_the_file_is_a_report(
    program_environment: dict[str, str], tmp_path: Path
) -> None:
    report = tmp_path / "sent.jsonl"
    words = ("--demo", "--no-questions", "--mlxk", str(PROGRAM), "--into", str(report))
    done = run(*words, environment={**program_environment, "PATH": os.environ["PATH"]}, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    lines: list[dict[str, Any]] = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    steps = {each["test"].partition("::")[2]: each for each in lines if each["test"].startswith("mac_acceptance::")}
    assert list(steps) == STEPS
    on_mac = sys.platform == "darwin"
    skipped = {name for name, each in steps.items() if each["outcome"] == "skipped"}
    assert skipped == (set() if on_mac else {"machine", "gpu", "machine_after"})
    assert len(lines) - len(steps) == 4  # rows of the model, and levels of the server
    text = report.read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    assert program_environment["HOME"] not in text
    read = subprocess.run(
        [str(PROGRAM), "bench", "report", str(report), "--json"],
        env=program_environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert read.returncode == 0, read
    if SCHEMA.exists():
        schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
        for each in lines:
            jsonschema.validate(each, schema)


def test_a_dry_run_says_what_would_be_asked_and_does_nothing(tmp_path: Path) -> None:
    done = run("--dry-run", environment={"PATH": os.environ["PATH"]}, folder=tmp_path)
    assert done.returncode == 0
    assert "mlx-community/Llama-3.2-1B-Instruct-4bit: would ask whether to fetch 0.7 GB" in done.stderr
    assert "would ask whether to put this Mac to sleep" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"), [(("--fast",), "unknown argument '--fast'"), (("--mlxk", "/no/mlxk"), "there is no program")]
)
def test_what_cannot_be_done_is_said(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = run(*words, environment={"PATH": os.environ["PATH"]}, folder=tmp_path)
    assert (done.returncode, said in done.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []
