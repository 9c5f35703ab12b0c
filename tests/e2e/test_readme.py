"""The README, followed: its commands run as they are written, the real model's on a tiny one of that name."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub.server import LoopbackHub

import mlxk.adapters.builtin

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("bash") is None, reason="the examples need bash"),
    pytest.mark.skipif(shutil.which("jq") is None, reason="the examples need jq"),
]

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
SESSIONS = re.findall(r"^```console\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
INSTALLS = ("uv tool install . -c constraints.txt", "make demo", "make test")
"""What is not run here: it fetches packages. CI's own command is one of them, and the others install the same."""
REAL_MODEL = "mlx-community/Qwen3-4B-4bit"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    """Serve a model of the real one's name, with the files of a built-in one."""
    files = Path(mlxk.adapters.builtin.__file__).parent / "models" / "demo"
    with LoopbackHub(tmp_path / "hub") as served:
        content = {path.name: path.read_bytes() for path in files.iterdir() if path.is_file()}
        served.add(REAL_MODEL, content, tags=("mlx",))
        yield served


@pytest.fixture
def environment(program_environment: dict[str, str], hub: LoopbackHub, tmp_path: Path) -> dict[str, str]:
    """Return the variables of a reader, whose hub is on this machine."""
    (tmp_path / "notes.txt").write_text("What is mlxk?\n")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**program_environment, "PATH": path, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}


def typed(command: str, environment: dict[str, str], folder: Path) -> str:
    """Run a command line as a shell does, and return what it prints; it must not fail."""
    ran = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=[script.split("\n")[0][:40] for script in SCRIPTS])
def test_the_commands_run_as_they_are_written(script: str, environment: dict[str, str], tmp_path: Path) -> None:
    lines = [re.split(r" +# ", line)[0].strip() for line in script.splitlines()]
    for line in lines:
        if line not in INSTALLS:
            assert typed(line, environment, tmp_path), line


def test_what_is_installed_first_is_what_the_test_knows() -> None:
    others = [line for script in SCRIPTS for line in script.splitlines() if not re.match(r"(?:mlxk|cat) ", line)]
    assert {re.split(r" +# ", line)[0].strip() for line in others} == set(INSTALLS)


@pytest.mark.parametrize("session", SESSIONS, ids=[session.split("\n")[0][:40] for session in SESSIONS])
def test_a_session_prints_what_is_shown(session: str, environment: dict[str, str], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    variables = {**environment, "MLXK2_PORT": port}
    shown = session.replace("8000", port)
    try:
        for part in re.split(r"^\$ ", shown, flags=re.MULTILINE)[1:]:
            command, _, expected = re.sub(r" \\\n\s*", " ", part).partition("\n")
            assert process_ids(typed(command, variables, tmp_path)) == process_ids(expected), command
    finally:
        subprocess.run([sys.executable, "-m", "mlxk", "stop", "--all"], env=variables, capture_output=True, check=False)


def process_ids(text: str) -> str:
    """Return a text with one number for every process."""
    return re.sub(r"process \d+", "process N", text.strip())


def test_the_picture_of_the_terminal_says_what_the_program_prints() -> None:
    tool = recording()
    assert "docs/pictures/terminal.svg" in README
    committed = tool.PICTURE.read_text(encoding="utf-8")
    assert tool.said(committed) == tool.said(tool.drawn()), "after a change: python tools/terminal_recording.py"


def test_the_picture_of_the_terminal_loads_nothing_from_elsewhere() -> None:
    picture = recording().PICTURE.read_text(encoding="utf-8")
    assert re.findall(r"url\((?!#)|href=|@import|<script", picture) == []


def recording() -> Any:
    """Load the tool that draws the picture."""
    spec = importlib.util.spec_from_file_location("terminal_recording", ROOT / "tools" / "terminal_recording.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
