"""``mlxk pull`` and ``mlxk rm`` as programs: killed, interrupted, at once, on a full disk."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub.models import sharded_model, small_model
from hub.server import LoopbackHub
from hub.soundness import assert_sound

Program = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., "subprocess.Popen[str]"]

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("cache")]
MEGABYTE = 1024 * 1024
SIZES = (30 * MEGABYTE, 20 * MEGABYTE, 14 * MEGABYTE)


@pytest.fixture
def pull(mlxk: Program, hub_variables: dict[str, str]) -> Program:
    """Run ``mlxk pull``."""

    def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        return mlxk("pull", *arguments, **hub_variables, **variables)

    return run


@pytest.fixture
def start(program_environment: dict[str, str], hub_variables: dict[str, str], tmp_path: Path) -> Start:
    """Start the program and return at once."""

    def run(*arguments: str, **variables: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "mlxk", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**program_environment, **hub_variables, **variables},
            cwd=tmp_path,
        )

    return run


def data(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """Return the data of a successful run with ``--json``."""
    assert done.returncode == 0, done.stdout + done.stderr
    envelope: dict[str, Any] = json.loads(done.stdout)
    return dict(envelope["data"])


def failure(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """Return the error of a failed run with ``--json``."""
    envelope: dict[str, Any] = json.loads(done.stdout)
    return dict(envelope["error"])


def bytes_served(hub: LoopbackHub) -> int:
    """Return how many bytes of files the hub sent."""
    return sum(call.sent for call in hub.calls(r"^/cdn/|/resolve/") if call.status < 300)


def assert_verified(cache: Path, name: str, files: dict[str, bytes]) -> None:
    """The cache is sound, its one snapshot of the model holds the files, and the hub client agrees."""
    from huggingface_hub import scan_cache_dir

    assert_sound(cache)
    folder = cache / ("models--" + name.replace("/", "--"))
    (snapshot,) = (folder / "snapshots").iterdir()
    found = {path.relative_to(snapshot).as_posix(): path.read_bytes() for path in snapshot.rglob("*") if path.is_file()}
    assert found == files
    (repository,) = [each for each in scan_cache_dir(cache).repos if each.repo_id == name]
    assert [revision.commit_hash for revision in repository.revisions] == [snapshot.name]
    assert [revision.refs for revision in repository.revisions] == [frozenset({"main"})]


def assert_continued(hub: LoopbackHub, kept: dict[str, int], seen: int) -> None:
    """The requests since a point of the log ask for what is missing of the files that were kept, to the byte."""
    for call in hub.calls()[seen:]:
        digest = call.path.rpartition("/")[2]
        if call.path.startswith("/cdn/"):
            assert call.range == (f"bytes={kept[digest]}-" if kept.get(digest) else None)


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something that another process brings about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_pull_killed_at_six_points_serves_each_byte_once(
    hub: LoopbackHub, start: Start, pull: Program, cache: Path
) -> None:
    files = sharded_model(SIZES)
    hub.add("org/m", files)
    # What a hub sends between the kill and the end of the connection is in the kernel's buffers and counts as served.
    hub.send_buffer = 65536
    hub.fault(r"^/cdn/", times=-1, rate=20 * MEGABYTE)
    size, kills = sum(map(len, files.values())), 6
    blobs, kept, seen = cache / "models--org--m" / "blobs", dict[str, int](), 0
    for point in range(kills):
        running = start("pull", "org/m", "--force-resume")
        wait_until(lambda point=point: bytes_served(hub) > size * (point + 0.5) / (kills + 1) or running.poll())  # noqa: B023
        running.send_signal(signal.SIGKILL)
        _, errors = running.communicate()
        assert running.returncode == -signal.SIGKILL, errors
        assert not list((cache / "models--org--m" / "snapshots").iterdir())
        assert_continued(hub, kept, seen)
        seen = len(hub.calls())
        kept = {path.name.partition(".")[0]: path.stat().st_size for path in blobs.glob("*.incomplete")}
    done = data(pull("org/m", "--force-resume", "--json"))
    assert_continued(hub, kept, seen)
    assert (done["download_status"], done["health"]) == ("success", "healthy")
    assert_verified(cache, "org/m", files)
    # More is in buffers where the machine is in use; what does not continue is served again, 67 MB at most each time.
    assert bytes_served(hub) <= size + kills * 6 * MEGABYTE


def test_a_partial_model_is_not_completed_without_a_yes(
    hub: LoopbackHub, start: Start, pull: Program, cache: Path
) -> None:
    hub.add("org/m", sharded_model((4 * MEGABYTE,)))
    hub.fault(r"^/cdn/", rate=MEGABYTE)
    running = start("pull", "org/m")
    wait_until(lambda: bytes_served(hub) > MEGABYTE)
    running.kill()
    running.communicate()
    refused = pull("org/m", "--json")
    assert (refused.returncode, failure(refused)["type"]) == (1, "requires_confirmation")
    assert "--force-resume" in failure(refused)["hint"]
    assert data(pull("org/m", "--json", "--force-resume"))["download_status"] == "success"


def test_an_interrupted_pull_ends_with_one_envelope_and_says_how_to_continue(
    hub: LoopbackHub, start: Start, cache: Path
) -> None:
    hub.add("org/m", sharded_model((8 * MEGABYTE,)))
    hub.fault(r"^/cdn/", rate=2 * MEGABYTE)
    running = start("pull", "org/m", "--json")
    wait_until(lambda: bytes_served(hub) > MEGABYTE)
    running.send_signal(signal.SIGINT)
    output, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert json.loads(output)["error"]["type"] == "interrupted"
    assert "mlxk pull org/m --force-resume" in json.loads(output)["error"]["hint"]
    assert errors == ""
    assert any(path.stat().st_size > MEGABYTE // 2 for path in (cache / "models--org--m" / "blobs").iterdir())


def test_two_pulls_at_once_download_once_and_rm_waits_for_neither(
    hub: LoopbackHub, start: Start, mlxk: Program, cache: Path
) -> None:
    files = sharded_model((6 * MEGABYTE, 2 * MEGABYTE))
    hub.add("org/m", files)
    hub.fault(r"^/cdn/", times=-1, rate=4 * MEGABYTE)
    first, second = start("pull", "org/m", "--json"), start("pull", "org/m", "--json")
    wait_until(lambda: bytes_served(hub) > MEGABYTE)
    refused = mlxk("rm", "org/m", "--force", "--json")
    assert (refused.returncode, failure(refused)["type"]) == (1, "locks_present")
    (holder,) = failure(refused)["detail"]["processes"]
    assert holder in {first.pid, second.pid}
    assert f"process {holder}, which is pulling it" in failure(refused)["message"]
    outcomes = [json.loads(process.communicate(timeout=60)[0]) for process in (first, second)]
    assert sorted(each["data"]["download_status"] for each in outcomes) == ["already_exists", "success"]
    assert bytes_served(hub) == sum(map(len, files.values()))
    assert_verified(cache, "org/m", files)
    assert data(mlxk("rm", "org/m", "--json"))["action"] == "deleted"
    assert not (cache / "models--org--m").exists()
    assert list((cache / ".locks").iterdir()) == []


def test_a_lock_that_another_client_holds_blocks_a_removal_and_names_the_process(
    hub: LoopbackHub, pull: Program, mlxk: Program, cache: Path
) -> None:
    hub.add("org/m", small_model())
    pull("org/m")
    lock = next((cache / ".locks" / "models--org--m").glob("*[0-9a-f].lock"))
    hold = f"import filelock, sys\nwith filelock.FileLock({str(lock)!r}): print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        error = failure(mlxk("rm", "org/m", "--json"))
        holder.communicate("")
    assert error["type"] == "locks_present"
    assert sys.platform != "linux" or error["detail"]["processes"] == [holder.pid]
    assert data(mlxk("rm", "org/m", "--json"))["action"] == "deleted"


def test_a_faltering_network_is_survived(hub: LoopbackHub, pull: Program, cache: Path) -> None:
    files = sharded_model(SIZES)
    hub.add("org/m", files)
    faults = [
        hub.fault(r"^/api/models/org/m/", status=502),
        hub.fault(r"^/cdn/", drop_after=9 * MEGABYTE, reset=True),
        hub.fault(r"^/cdn/", drop_after=2 * MEGABYTE),
        hub.fault(r"^/cdn/", status=503),
        hub.fault(r"^/cdn/", status=429, headers={"Retry-After": "1"}),
        hub.fault(r"^/cdn/", stall_after=MEGABYTE),
    ]
    began = time.monotonic()
    done = data(pull("org/m", "--json", HF_HUB_DOWNLOAD_TIMEOUT="1"))
    assert done["download_status"] == "success"
    assert_verified(cache, "org/m", files)
    assert [fault.times for fault in faults] == [0] * len(faults)
    asked_to_wait = next(call for call in hub.calls(r"^/cdn/") if call.status == 429)
    assert any(call.started >= asked_to_wait.started + 1 for call in hub.calls(r"^/cdn/"))
    assert bytes_served(hub) <= sum(map(len, files.values())) + len(faults) * MEGABYTE
    assert time.monotonic() - began < 60


def test_a_byte_flipped_on_the_way_is_refused_and_fetched_again(hub: LoopbackHub, pull: Program, cache: Path) -> None:
    files = small_model(3 * MEGABYTE)
    hub.add("org/m", files)
    hub.fault(r"^/cdn/", corrupt_at=2 * MEGABYTE)
    assert data(pull("org/m", "--json"))["download_status"] == "success"
    assert len(hub.calls(r"^/cdn/")) == 2
    assert_verified(cache, "org/m", files)


def test_bytes_that_stay_damaged_never_become_a_file(hub: LoopbackHub, pull: Program, cache: Path) -> None:
    hub.add("org/m", small_model(MEGABYTE))
    hub.fault(r"^/cdn/", times=-1, corrupt_at=1000)
    error = failure(pull("org/m", "--json"))
    assert error["type"] == "download_failed"
    assert "model.safetensors" in error["message"]
    assert not list((cache / "models--org--m" / "snapshots").iterdir())
    hub.heal()
    assert data(pull("org/m", "--json", "--force-resume"))["health"] == "healthy"


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk_is_named_leaves_nothing_half_visible_and_is_resumed(
    hub: LoopbackHub, start: Start, pull: Program, tmp_path: Path
) -> None:
    files = small_model(20 * MEGABYTE)
    hub.add("org/m", files)
    fault = hub.fault(r"^/cdn/", times=-1, rate=2 * MEGABYTE)
    with small_disk(tmp_path / "disk", megabytes=110) as disk:
        cache, ballast = disk / "hub", disk / "ballast"
        ballast.write_bytes(bytes(40 * MEGABYTE))
        refused = failure(pull("org/m", "--json", HF_HUB_CACHE=str(cache)))
        assert refused["type"] == "storage_error"
        assert refused["detail"]["needed_bytes"] == sum(map(len, files.values()))
        assert bytes_served(hub) == 0
        ballast.unlink()
        running = start("pull", "org/m", "--json", HF_HUB_CACHE=str(cache))
        wait_until(lambda: bytes_served(hub) > 5 * MEGABYTE)
        fill(ballast)
        fault.rate = 20 * MEGABYTE
        error = json.loads(running.communicate(timeout=60)[0])["error"]
        assert (error["type"], error["message"]) == ("storage_error", "the disk of the model cache is full")
        assert not list((cache / "models--org--m" / "snapshots").iterdir())
        ballast.unlink()
        done = data(pull("org/m", "--json", "--force-resume", HF_HUB_CACHE=str(cache)))
        assert done["missing_bytes"] < 17 * MEGABYTE
        assert_verified(cache, "org/m", files)


@contextlib.contextmanager
def small_disk(mount: Path, megabytes: int) -> Iterator[Path]:
    """Mount a file system of a size."""
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", mount], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)


def fill(path: Path) -> None:
    """Write to a file until the disk is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(MEGABYTE)):
            continue
