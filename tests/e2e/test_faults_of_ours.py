"""A fault that nothing expects is one error, wherever it happens: no traceback, unless the log level is debug."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

PROGRAM = """
import sys
from importlib import import_module
module, name = sys.argv[1].split(":")
setattr(import_module(module), name, None)
from mlxk.entrypoints.main import main
sys.exit(main(sys.argv[2:]))
"""
Faulty = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def faulty(program_environment: dict[str, str], tmp_path: Path) -> Faulty:
    """Run the program in a Python that lacks one function."""
    settings = Path(program_environment["HOME"]) / ".config" / "mlxk" / "config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text("[chat]\nkeep = false\n")

    def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, *arguments],
            env=program_environment | variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run


WHERE = {"while settings are read": "tomllib:loads", "in a command": "os:scandir"}


@pytest.mark.parametrize("lacking", WHERE.values(), ids=WHERE)
def test_it_is_one_error_that_says_how_to_report_it(faulty: Faulty, lacking: str) -> None:
    said = faulty(lacking, "list")
    assert (said.returncode, said.stdout) == (1, "")
    assert "Error: TypeError: 'NoneType' object is not callable\n" in said.stderr
    assert "please report it" in said.stderr
    assert "Traceback" not in said.stderr
    document = faulty(lacking, "list", "--json")
    assert (document.returncode, document.stderr) == (1, "")
    error = json.loads(document.stdout)["error"]
    assert (error["type"], error["message"]) == ("internal_error", "TypeError: 'NoneType' object is not callable")


def test_at_the_log_level_debug_it_shows_where(faulty: Faulty) -> None:
    said = faulty("os:scandir", "list", MLXK2_LOG_LEVEL="debug")
    assert said.returncode == 1
    assert "Traceback" in said.stderr
    assert "scandir" in said.stderr
