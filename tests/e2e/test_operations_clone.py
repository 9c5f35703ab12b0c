"""``mlxk clone`` as a program that is killed at any moment."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub.models import sharded_model
from hub.server import LoopbackHub

Command = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.e2e
MEGABYTE = 1024 * 1024
KILLS = 50


def contents(directory: Path) -> dict[str, bytes]:
    """Return the files of a workspace, its record left out."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != ".mlxk_workspace.json"
    }


def test_a_clone_killed_at_any_moment_is_absent_or_whole(
    hub: LoopbackHub,
    command: Command,
    program_environment: dict[str, str],
    hub_variables: dict[str, str],
    tmp_path: Path,
) -> None:
    files = sharded_model((24 * MEGABYTE, 16 * MEGABYTE, 8 * MEGABYTE))
    hub.add("org/m", files)
    command("clone", "org/m", "./warm")
    environment = {**program_environment, **hub_variables}
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "mlxk", "clone", "org/m", "./timed", "--json"],
        env=environment, cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    whole_run, moments = time.monotonic() - began, random.Random(7)
    complete = 0
    for _ in range(KILLS):
        target = tmp_path / f"killed-{complete}"
        running = subprocess.Popen(
            [sys.executable, "-m", "mlxk", "clone", "org/m", str(target), "--json"],
            env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(whole_run * moments.uniform(0.4, 1.0))
        running.send_signal(signal.SIGKILL)
        running.wait()
        if target.exists():
            assert contents(target) == files
            complete += 1
    assert command("clone", "org/m", f"./killed-{complete}")["data"]["health"] == "healthy"
    assert complete < KILLS
