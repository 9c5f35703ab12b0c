"""A hub that does not keep to what it listed: more bytes, other bytes, another part, fewer."""

from pathlib import Path

import attrs
import pytest
from doubles.progress import InMemoryProgress
from hub.models import small_model
from hub.server import LoopbackHub

from mlxk.adapters.huggingface.client import HubAccess, HubClient, RetryPolicy
from mlxk.adapters.huggingface.hub import HuggingFaceModelHub
from mlxk.domain.errors import DownloadFailedError, MlxkError
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
