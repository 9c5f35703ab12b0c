"""The contract of changing the model cache, held by every adapter."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from doubles.cache_editor import InMemoryCacheEditor
from doubles.model_cache import CachedModel, InMemoryModelCache
from doubles.model_files import InMemoryModelFiles

from mlxk.adapters.huggingface.cache import HuggingFaceModelCache
from mlxk.adapters.huggingface.cache_editor import HuggingFaceCacheEditor
from mlxk.application.ports.cache_editor import CacheEditor, Removal
from mlxk.application.ports.model_cache import ModelCache
from mlxk.domain.errors import RevisionNotFoundError

A, B = "a" * 40, "b" * 40
SHARED, OLD, NEW = b"shared by both" * 10, b"old", b"newer"
Build = Callable[[Mapping[str, Mapping[str, bytes]]], tuple[CacheEditor, ModelCache]]


def write(root: Path, name: str, revisions: Mapping[str, Mapping[str, bytes]]) -> None:
    import hashlib

    folder = root / ("models--" + name.replace("/", "--"))
    for place in ("blobs", "refs", "snapshots"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    for revision, files in revisions.items():
        for path, content in files.items():
            blob = hashlib.sha256(content).hexdigest()
            (folder / "blobs" / blob).write_bytes(content)
            link = folder / "snapshots" / revision / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to("../" * (path.count("/") + 2) + f"blobs/{blob}")
    for reference, revision in (("main", max(revisions)), ("old", min(revisions))):
        (folder / "refs" / reference).write_text(revision)


@pytest.fixture(params=["huggingface", "in_memory"])
def build(request: pytest.FixtureRequest, tmp_path: Path) -> Build:
    def on_disk(revisions: Mapping[str, Mapping[str, bytes]]) -> tuple[CacheEditor, ModelCache]:
        write(tmp_path / "hub", "org/m", revisions)
        return HuggingFaceCacheEditor(str(tmp_path / "hub")), HuggingFaceModelCache(str(tmp_path / "hub"))

    def in_memory(revisions: Mapping[str, Mapping[str, bytes]]) -> tuple[CacheEditor, ModelCache]:
        references = {"main": max(revisions), "old": min(revisions)}
        cache = InMemoryModelCache({"org/m": CachedModel(tuple(sorted(revisions)), references)})
        files = InMemoryModelFiles({f"/cache/org/m/{revision}": each for revision, each in revisions.items()})
        return InMemoryCacheEditor(cache, files, free=10**9), cache

    return on_disk if request.param == "huggingface" else in_memory


def planned(editor: CacheEditor, revision: str | None = None) -> Removal:
    removal = editor.plan_removal("org/m", revision)
    assert removal is not None
    return removal


def test_what_is_not_cached_cannot_be_removed(build: Build) -> None:
    editor, _ = build({A: {"config.json": OLD}})
    assert editor.plan_removal("org/none") is None
    assert editor.plan_removal("org/m", B) is None


def test_removing_a_revision_spares_what_others_use(build: Build) -> None:
    editor, cache = build({A: {"w": SHARED, "sub/c": OLD}, B: {"w": SHARED, "sub/c": NEW}})
    removal = planned(editor, A)
    assert (removal.revisions, removal.whole, removal.size_bytes) == ((A,), False, len(OLD))
    with editor.reserve("org/m", "removing it"):
        editor.remove(removal)
    kept = cache.find("org/m")
    assert kept is not None
    assert kept.revision == B
    for gone in (A, "old"):
        with pytest.raises(RevisionNotFoundError):
            cache.find("org/m", gone)
    assert planned(editor).size_bytes >= len(SHARED + NEW)


def test_removing_the_last_revision_removes_the_model(build: Build) -> None:
    editor, cache = build({A: {"w": SHARED}})
    removal = planned(editor, A)
    assert removal.whole
    assert removal.size_bytes >= len(SHARED)
    editor.remove(removal)
    editor.remove(removal)
    assert cache.find("org/m") is None
    assert editor.plan_removal("org/m") is None


def test_a_model_can_be_reserved_whether_cached_or_not_and_reserving_oneself_out_is_no_use_of_it(build: Build) -> None:
    editor, _ = build({A: {"w": SHARED}})
    for name in ("org/m", "org/none"):
        with editor.reserve(name, "pulling it"):
            assert editor.holders(name) == ()
        assert editor.holders(name) == ()


def test_the_disk_says_how_much_it_can_take(build: Build) -> None:
    editor, _ = build({A: {"w": SHARED}})
    free = editor.free_bytes()
    assert free is not None
    assert free > 0
