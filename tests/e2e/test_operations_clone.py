"""``mlxk clone`` and ``mlxk convert`` as programs that are killed at any moment."""

import json
import random
import shutil
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
Start = Callable[..., "subprocess.Popen[bytes]"]

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("cache")]
MEGABYTE = 1024 * 1024
KILLS = 16


@pytest.fixture
def start(program_environment: dict[str, str], hub_variables: dict[str, str], tmp_path: Path) -> Start:
    """Start the program and return at once."""

    def run(*arguments: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-m", "mlxk", *arguments, "--json"],
            env={**program_environment, **hub_variables},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    return run


def contents(directory: Path) -> dict[str, bytes]:
    """Return the files of a workspace, its record left out."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != ".mlxk_workspace.json"
    }


def draft_of(target: Path) -> Path:
    """Return where a workspace is made before it is at its place."""
    return target.with_name(f".{target.name}.mlxk-draft")


def noted(target: Path) -> int:
    """Return when a program last began to make a workspace; 0 when none has, or when it is there."""
    try:
        return (draft_of(target) / ".mlxk_draft.lock").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def wait_for_draft(target: Path, running: "subprocess.Popen[bytes]", before: int = 0) -> float:
    """Wait until this program is making a workspace, or it is there, or the program has ended; return when that was."""
    while noted(target) in {0, before} and not target.exists() and running.poll() is None:
        time.sleep(0.001)
    return time.monotonic()


def test_a_clone_killed_at_any_moment_is_absent_or_whole(
    hub: LoopbackHub, command: Command, start: Start, tmp_path: Path
) -> None:
    files = sharded_model((12 * MEGABYTE, 8 * MEGABYTE, 4 * MEGABYTE))
    hub.add("org/m", files)
    command("pull", "org/m")
    timed = start("clone", "org/m", "./timed")
    began = wait_for_draft(tmp_path / "timed", timed)
    timed.communicate()
    making, moments, complete, begun = time.monotonic() - began, random.Random(7), 0, 0
    for number in range(KILLS):
        target = tmp_path / f"killed-{complete}"
        if number % 2:  # half of the runs continue the one before, half begin anew
            shutil.rmtree(draft_of(target), ignore_errors=True)
        before = noted(target)
        running = start("clone", "org/m", str(target))
        wait_for_draft(target, running, before)
        if number == KILLS - 1:  # one is whole, however fast the machine is at the moment
            running.wait()
        time.sleep(making * moments.uniform(0, 1.1) if number else 0)
        running.send_signal(signal.SIGKILL)
        running.communicate()
        begun += draft_of(target).exists()
        if target.exists():
            assert contents(target) == files
            shown = command("show", str(target))["data"]["model"]
            assert (shown["origin"], shown["clean"], shown["health"]) == ("org/m", True, "healthy")
            complete += 1
    assert complete > 0
    assert begun > 0
    assert complete + begun == KILLS
    assert command("clone", "org/m", f"./killed-{complete}")["data"]["health"] == "healthy"
    assert contents(tmp_path / f"killed-{complete}") == files


def test_an_interrupted_clone_ends_with_one_envelope_and_is_continued(
    hub: LoopbackHub, command: Command, start: Start, tmp_path: Path
) -> None:
    hub.add("org/m", sharded_model((2 * MEGABYTE,)))
    hub.fault("^/cdn/", rate=MEGABYTE)
    running = start("clone", "org/m", "./copy")
    while not hub.calls("^/cdn/"):
        time.sleep(0.01)
    time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    output, _ = running.communicate()
    assert running.returncode == 130
    assert json.loads(output)["error"]["type"] == "interrupted"
    assert not (tmp_path / "copy").exists()
    assert command("clone", "org/m", "./copy", "--force-resume")["data"]["health"] == "healthy"


@pytest.mark.mlx
def test_a_conversion_killed_at_any_moment_leaves_no_target_or_a_whole_one(
    command: Command, start: Start, tmp_path: Path
) -> None:
    from models.tiny_models import build

    build(tmp_path / "source", hidden_size=512, intermediate_size=2048, num_hidden_layers=6, head_dim=128)
    moments, kills = random.Random(3), 4
    for number in range(kills):
        target = tmp_path / f"small-{number}"
        running = start("convert", "./source", str(target), "--quantize", "4")
        wait_for_draft(target, running)
        time.sleep(moments.uniform(0, 0.8))
        running.send_signal(signal.SIGKILL)
        running.communicate()
        if target.exists():
            assert command("health", str(target))["data"]["summary"]["healthy_count"] == 1
    assert command("convert", "./source", "./small", "--quantize", "4")["data"]["health"] == "healthy"
