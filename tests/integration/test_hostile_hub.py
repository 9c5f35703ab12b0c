"""A hub that does not keep to what it listed, and a disk that does not take what arrives."""

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from doubles.progress import InMemoryProgress
from hub.models import small_model
from hub.server import LoopbackHub
from process_limits import largest_file

from mlxk.adapters.huggingface.client import HubAccess, HubClient, RetryPolicy
from mlxk.adapters.huggingface.hub import HuggingFaceModelHub
from mlxk.adapters.huggingface.locks import try_lock
from mlxk.adapters.huggingface.transfer import storage_error
from mlxk.domain.errors import DownloadFailedError, MlxkError, StorageError
from mlxk.domain.hub import DownloadPlan, plan_download

MEGABYTE = 1024 * 1024
WEIGHTS = "model.safetensors"

pytestmark = pytest.mark.usefixtures("cache")


class LargestReports(InMemoryProgress):
    """Keeps the largest report about each item."""

    def __init__(self) -> None:
        super().__init__()
        self.largest: dict[str, int] = {}

    def advance(self, done: dict[str, int]) -> None:  # type: ignore[override]
        super().advance(done)
        self.largest |= {name: max(count, self.largest.get(name, 0)) for name, count in done.items()}


@pytest.fixture
def source(hub: LoopbackHub, cache: Path) -> HuggingFaceModelHub:
    access = HubAccess(hub.url, timeout=1, retry_policy=RetryPolicy(retries=2, first_wait=0.01, longest_wait=0.02))
    return HuggingFaceModelHub(HubClient(access), str(cache))


def listed_as(plan: DownloadPlan, size_bytes: int) -> DownloadPlan:
    """Return a plan in which the weights are listed with another size than the hub sends."""
    files = [attrs.evolve(file, size_bytes=size_bytes) if file.path == WEIGHTS else file for file in plan.files]
    return attrs.evolve(plan, files=tuple(files))


@pytest.mark.parametrize("listed", [1000, MEGABYTE // 2])
def test_a_hub_that_sends_more_than_it_listed_is_refused_before_more_is_kept(
    hub: LoopbackHub, source: HuggingFaceModelHub, cache: Path, listed: int
) -> None:
    hub.add("org/m", small_model(MEGABYTE))
    progress = LargestReports()
    with pytest.raises(DownloadFailedError, match=rf"{listed} bytes"):
        source.fetch(listed_as(plan_download(source.describe("org/m")), listed), progress)
    assert progress.largest.get(WEIGHTS, 0) <= listed
    assert len(hub.calls("^/cdn/")) == 1
    kept = [path.stat().st_size for path in cache.rglob("*") if path.is_file() and not path.is_symlink()]
    assert all(size <= max(listed, 10_000) for size in kept)


def test_a_hub_that_sends_fewer_bytes_than_it_listed_is_given_up_and_nothing_is_published(
    hub: LoopbackHub, source: HuggingFaceModelHub, cache: Path
) -> None:
    hub.add("org/m", small_model(MEGABYTE))
    plan = listed_as(plan_download(source.describe("org/m")), 2 * MEGABYTE)
    weights = next(file for file in plan.files if file.path == WEIGHTS)
    with pytest.raises(MlxkError):
        source.fetch(plan, InMemoryProgress())
    assert not (cache / "models--org--m" / "blobs" / weights.digest).exists()


def test_another_part_of_a_file_than_was_asked_for_is_refused(hub: LoopbackHub, source: HuggingFaceModelHub) -> None:
    hub.add("org/m", small_model(MEGABYTE))
    plan = plan_download(source.describe("org/m"))
    hub.fault("^/cdn/", drop_after=500_000)
    hub.fault("^/cdn/", times=-1, headers={"Content-Range": f"bytes 7-{MEGABYTE - 1}/{MEGABYTE}"})
    with pytest.raises(DownloadFailedError, match="another part"):
        source.fetch(plan, InMemoryProgress())
    hub.heal()
    source.fetch(plan, InMemoryProgress())
    assert source.missing_bytes(plan) == 0


def test_a_file_that_arrives_damaged_three_times_is_given_up_and_nothing_of_it_is_kept(
    hub: LoopbackHub, source: HuggingFaceModelHub, cache: Path
) -> None:
    hub.add("org/m", small_model(MEGABYTE))
    plan = plan_download(source.describe("org/m"))
    hub.fault("^/cdn/", times=-1, corrupt_at=100)
    with pytest.raises(DownloadFailedError) as caught:
        source.fetch(plan, InMemoryProgress())
    assert caught.value.message == ("model.safetensors arrived damaged 3 times: its checksum differs from the hub's")
    assert len(hub.calls("^/cdn/")) == 3
    folder = cache / "models--org--m"
    assert [(path.name, path.stat().st_size) for path in (folder / "blobs").glob("*.incomplete")] == [
        (f"{weights_of(plan)}.mlxk.incomplete", 0)
    ]
    assert not (folder / "snapshots" / plan.model.commit).exists()


def weights_of(plan: DownloadPlan) -> str:
    """Return the digest of the weights."""
    return next(file.digest for file in plan.files if file.path == WEIGHTS)


PLACES: dict[str, Callable[[str, str], str]] = {
    "partial file": lambda digest, commit: f"models--org--m/blobs/{digest}.mlxk.incomplete/x",
    "blob": lambda digest, commit: f"models--org--m/blobs/{digest}/x",
    "lock": lambda digest, commit: f".locks/models--org--m/{digest}.lock/x",
    "snapshot": lambda digest, commit: f"models--org--m/snapshots/{commit}",
}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_in_the_way_in_the_cache_is_a_storage_error_and_stays(
    hub: LoopbackHub, source: HuggingFaceModelHub, cache: Path, place: str
) -> None:
    hub.add("org/m", small_model())
    plan = plan_download(source.describe("org/m"))
    obstacle = cache / PLACES[place](weights_of(plan), plan.model.commit)
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("mine")
    with pytest.raises(StorageError, match=r"^the model cache cannot be written to: (Is|Not) a directory$"):
        source.fetch(plan, InMemoryProgress())
    assert obstacle.read_text() == "mine"
    obstacle.unlink()
    if obstacle.name == "x":
        obstacle.parent.rmdir()
    source.fetch(plan, InMemoryProgress())
    assert source.missing_bytes(plan) == 0


def test_a_disk_that_takes_no_more_ends_the_download_and_keeps_what_arrived(
    hub: LoopbackHub, source: HuggingFaceModelHub, cache: Path
) -> None:
    hub.add("org/m", small_model(MEGABYTE))
    plan = plan_download(source.describe("org/m"))
    with largest_file(MEGABYTE // 2), pytest.raises(StorageError, match="cannot be written to: File too large"):
        source.fetch(plan, InMemoryProgress())
    partial = cache / "models--org--m" / "blobs" / f"{weights_of(plan)}.mlxk.incomplete"
    assert partial.stat().st_size == MEGABYTE // 2
    hub.forget()
    source.fetch(plan, InMemoryProgress())
    assert [call.range for call in hub.calls("^/cdn/")] == [f"bytes={MEGABYTE // 2}-"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_as_such(number: int) -> None:
    error = storage_error(OSError(number, os.strerror(number)))
    assert (error.message, error.hint) == (
        "the disk of the model cache is full",
        "Make space and run the same command again: what arrived is kept.",
    )


def test_what_another_client_has_fetched_meanwhile_is_not_fetched_again(
    hub: LoopbackHub, source: HuggingFaceModelHub, cache: Path
) -> None:
    files = small_model(MEGABYTE)
    hub.add("org/m", files)
    plan = plan_download(source.describe("org/m"))
    digest = weights_of(plan)
    blobs = cache / "models--org--m" / "blobs"
    blobs.mkdir(parents=True)
    partial = blobs / f"{digest}.mlxk.incomplete"
    fetching = threading.Thread(target=source.fetch, args=(plan, InMemoryProgress()))
    with partial.open("wb") as begun:
        fcntl.flock(begun, fcntl.LOCK_EX)
        fetching.start()
        lock, deadline = str(cache / ".locks" / "models--org--m" / f"{digest}.lock"), time.monotonic() + 60
        while _is_free(lock) and time.monotonic() < deadline:
            pass
        (blobs / digest).write_bytes(files[WEIGHTS])
    fetching.join(60)
    assert hub.calls("^/cdn/") == []
    assert (partial.exists(), source.missing_bytes(plan)) == (False, 0)


def _is_free(lock: str) -> bool:
    """Whether nobody holds a lock, or it does not exist."""
    if not os.path.exists(lock):
        return True
    descriptor = try_lock(lock, create=False)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is not None
