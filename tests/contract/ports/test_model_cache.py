"""The contract of the model cache, held by every adapter."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from doubles.model_cache import CachedModel, InMemoryModelCache
from doubles.model_files import InMemoryModelFiles

from mlxk.adapters.huggingface.cache import HuggingFaceModelCache
from mlxk.application.ports.model_cache import ManifestEntry, ModelCache, Removal
from mlxk.domain.errors import RevisionNotFoundError
from mlxk.domain.models.disk_usage import Waste
from mlxk.domain.models.model import ModelHandle, Origin

A, A2, B = "a" * 40, "a" * 39 + "b", "b" * 40
SHA1, SHA256 = "1" * 40, "2" * 64
SHARED, OLD, NEW = b"shared by both" * 10, b"old", b"newer"
Files = Mapping[str, Mapping[str, bytes]]
Build = Callable[[Mapping[str, CachedModel]], ModelCache]
Filled = Callable[[Files], ModelCache]


def write(root: Path, name: str, model: CachedModel) -> None:
    folder = root / ("models--" + name.replace("/", "--"))
    for place in ("snapshots", "blobs", "refs", "trees"):
        (folder / place).mkdir(parents=True)
    for age, revision in enumerate(model.revisions):
        snapshot = folder / "snapshots" / revision
        snapshot.mkdir()
        os.utime(snapshot, (1_700_000_000 + age, 1_700_000_000 + age))
    for reference, revision in model.references.items():
        path = folder / "refs" / reference
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(revision)
    for revision, entries in model.manifests.items():
        files = {entry.path: _listed(entry) for entry in entries}
        (folder / "trees" / f"{revision}.json").write_text(json.dumps({"format_version": 1, "files": files}))
    for number in range(model.unfinished):
        (folder / "blobs" / f"{SHA256}.{number:08x}.incomplete").write_bytes(b"half")


def _listed(entry: ManifestEntry) -> dict[str, object]:
    lfs = {"lfs_sha256": entry.digest, "lfs_size": entry.size_bytes} if len(entry.digest or "") == 64 else {}
    return {"size": entry.size_bytes, "blob_id": SHA1, **lfs}


@pytest.fixture(params=["huggingface", "in_memory"])
def build(request: pytest.FixtureRequest, tmp_path: Path) -> Build:
    def on_disk(models: Mapping[str, CachedModel]) -> ModelCache:
        for name, model in models.items():
            write(tmp_path / "hub", name, model)
        return HuggingFaceModelCache(str(tmp_path / "hub"))

    return on_disk if request.param == "huggingface" else InMemoryModelCache


def found(cache: ModelCache, name: str, revision: str | None = None) -> ModelHandle:
    handle = cache.find(name, revision)
    assert handle is not None
    return handle


class TestModelCache:
    def test_no_cache_holds_no_models(self, build: Build) -> None:
        cache = build({})
        assert list(cache.names()) == []
        assert cache.find("org/m") is None

    def test_names_are_sorted_and_include_broken_downloads(self, build: Build) -> None:
        cache = build({"z/last": CachedModel((A,)), "bare": CachedModel(), "a/b": CachedModel((B,))})
        assert list(cache.names()) == ["a/b", "bare", "z/last"]

    def test_a_name_is_matched_exactly(self, build: Build) -> None:
        cache = build({"org/model": CachedModel((A,))})
        for other in ("", "model", "org", "org/mode", "org/model2", "Org/model", "org--model", "../org/model", "a\0b"):
            assert cache.find(other) is None
            assert cache.find(other, "main") is None

    def test_a_handle_carries_name_origin_revision_and_an_absolute_directory(self, build: Build) -> None:
        handle = found(build({"org/m": CachedModel((A,))}), "org/m")
        assert (handle.name, handle.origin, handle.revision, handle.commit) == ("org/m", Origin.CACHE, A, A)
        assert os.path.isabs(handle.directory)
        assert handle.directory.endswith(A)

    def test_the_main_reference_decides_the_current_snapshot(self, build: Build) -> None:
        cache = build({"org/m": CachedModel((A, B), {"main": A})})
        assert found(cache, "org/m").revision == A

    @pytest.mark.parametrize("references", [{}, {"main": "c" * 40}, {"other": A}])
    def test_the_newest_snapshot_is_current_when_the_main_one_is_not_here(
        self, build: Build, references: Mapping[str, str]
    ) -> None:
        assert found(build({"org/m": CachedModel((A, B), references)}), "org/m").revision == B
        assert found(build({"org/n": CachedModel((B, A), references)}), "org/n").revision == A

    def test_a_model_without_snapshots_is_found_as_its_folder(self, build: Build) -> None:
        handle = found(build({"org/m": CachedModel()}), "org/m")
        assert handle.revision is None
        assert os.path.isabs(handle.directory)

    def test_a_revision_is_a_branch_a_tag_a_commit_or_a_prefix_of_one(self, build: Build) -> None:
        cache = build({"org/m": CachedModel((A, B), {"main": A, "v1.0": B, "refs/pr/1": B})})
        expected = {"main": A, "v1.0": B, "refs/pr/1": B, A: A, B: B, "bbbb": B, "a": A}
        assert {revision: found(cache, "org/m", revision).revision for revision in expected} == expected

    def test_a_snapshot_may_have_any_name_but_only_a_hash_is_a_commit(self, build: Build) -> None:
        handle = found(build({"org/m": CachedModel(("main",))}), "org/m", "main")
        assert (handle.revision, handle.commit) == ("main", None)

    def test_an_ambiguous_prefix_is_an_error_with_the_revisions_it_fits(self, build: Build) -> None:
        with pytest.raises(RevisionNotFoundError) as caught:
            build({"org/m": CachedModel((B, A2, A))}).find("org/m", "aaa")
        assert caught.value.matches == (A, A2)

    @pytest.mark.parametrize("revision", ["c" * 40, "no-such-branch", "", ".", "..", "../" + A, "/" + A, "x/../" + A])
    def test_a_revision_that_is_not_here_is_an_error_with_all_that_are(self, build: Build, revision: str) -> None:
        with pytest.raises(RevisionNotFoundError) as caught:
            build({"org/m": CachedModel((B, A))}).find("org/m", revision)
        assert caught.value.matches == (A, B)

    def test_a_reference_to_an_absent_snapshot_is_not_found(self, build: Build) -> None:
        with pytest.raises(RevisionNotFoundError):
            build({"org/m": CachedModel((A,), {"main": A, "dev": B})}).find("org/m", "dev")

    def test_any_revision_of_a_broken_download_is_not_found(self, build: Build) -> None:
        with pytest.raises(RevisionNotFoundError) as caught:
            build({"org/m": CachedModel()}).find("org/m", "main")
        assert caught.value.matches == ()

    def test_a_manifest_is_sorted_by_path(self, build: Build) -> None:
        entries = (ManifestEntry("z.safetensors", 9, SHA256), ManifestEntry("a/config.json", 2, SHA1))
        cache = build({"org/m": CachedModel((A,), manifests={A: entries})})
        assert cache.manifest(found(cache, "org/m")) == (entries[1], entries[0])

    def test_a_revision_without_record_has_no_manifest(self, build: Build) -> None:
        cache = build({"org/m": CachedModel((A, B), manifests={A: ()}), "org/broken": CachedModel()})
        assert cache.manifest(found(cache, "org/m", A)) == ()
        assert cache.manifest(found(cache, "org/m", B)) is None
        assert cache.manifest(found(cache, "org/broken")) is None

    def test_unfinished_downloads_are_counted(self, build: Build) -> None:
        cache = build({"org/half": CachedModel((A,), unfinished=2), "org/whole": CachedModel((A,))})
        assert cache.unfinished_downloads(found(cache, "org/half")) == 2
        assert cache.unfinished_downloads(found(cache, "org/whole")) == 0

    def test_the_handle_of_a_model_that_has_gone_is_harmless(self, build: Build) -> None:
        gone = ModelHandle("org/gone", "/nowhere/org/gone", Origin.CACHE, A)
        cache = build({"org/m": CachedModel((A,))})
        assert cache.manifest(gone) is None
        assert cache.unfinished_downloads(gone) == 0


def write_files(root: Path, name: str, revisions: Mapping[str, Mapping[str, bytes]]) -> None:
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
def filled(request: pytest.FixtureRequest, tmp_path: Path) -> Filled:
    """Return what makes a cache with one model, ``org/m``, from its revisions and their files."""

    def on_disk(revisions: Files) -> ModelCache:
        write_files(tmp_path / "hub", "org/m", revisions)
        return HuggingFaceModelCache(str(tmp_path / "hub"))

    def in_memory(revisions: Files) -> ModelCache:
        references = {"main": max(revisions), "old": min(revisions)}
        files = InMemoryModelFiles({f"/cache/org/m/{revision}": each for revision, each in revisions.items()})
        model = CachedModel(tuple(sorted(revisions)), references)
        return InMemoryModelCache({"org/m": model}, files=files, free=10**9)

    return on_disk if request.param == "huggingface" else in_memory


def planned(cache: ModelCache, revision: str | None = None) -> Removal:
    removal = cache.plan_removal("org/m", revision)
    assert removal is not None
    return removal


def test_what_is_not_cached_cannot_be_removed(filled: Filled) -> None:
    cache = filled({A: {"config.json": OLD}})
    assert cache.plan_removal("org/none") is None
    assert cache.plan_removal("org/m", B) is None


def test_removing_a_revision_spares_what_others_use(filled: Filled) -> None:
    cache = filled({A: {"w": SHARED, "sub/c": OLD}, B: {"w": SHARED, "sub/c": NEW}})
    removal = planned(cache, A)
    assert (removal.revisions, removal.all_revisions, removal.size_bytes) == ((A,), False, len(OLD))
    with cache.reserve("org/m", "removing it"):
        cache.remove(removal)
    kept = cache.find("org/m")
    assert kept is not None
    assert kept.revision == B
    for gone in (A, "old"):
        with pytest.raises(RevisionNotFoundError):
            cache.find("org/m", gone)
    assert planned(cache).size_bytes >= len(SHARED + NEW)


def test_removing_the_last_revision_removes_the_model(filled: Filled) -> None:
    cache = filled({A: {"w": SHARED}})
    removal = planned(cache, A)
    assert removal.all_revisions
    assert removal.size_bytes >= len(SHARED)
    cache.remove(removal)
    cache.remove(removal)
    assert cache.find("org/m") is None
    assert cache.plan_removal("org/m") is None


def test_any_model_can_be_reserved_and_the_own_reservation_is_not_a_holder(
    filled: Filled,
) -> None:
    cache = filled({A: {"w": SHARED}})
    for name in ("org/m", "org/none"):
        with cache.reserve(name, "pulling it"):
            assert cache.holders(name) == ()
        assert cache.holders(name) == ()


def test_the_disk_says_how_much_it_can_take(filled: Filled) -> None:
    cache = filled({A: {"w": SHARED}})
    free = cache.free_bytes()
    assert free is not None
    assert free > 0


def test_what_is_not_cached_takes_nothing(filled: Filled) -> None:
    assert filled({A: {"w": SHARED}}).usage("org/none") is None


def test_usage_tells_the_revisions_their_names_and_what_they_share(filled: Filled) -> None:
    usage = filled({A: {"w": SHARED, "c": OLD}, A2: {"c": b"middle"}, B: {"w": SHARED, "c": NEW}}).usage("org/m")
    assert usage is not None
    assert [(each.name, each.references, each.is_current, each.is_old) for each in usage.revisions] == [
        (A2, (), False, True) if A2 < A else (A, ("old",), False, False),
        (A, ("old",), False, False) if A2 < A else (A2, (), False, True),
        (B, ("main",), True, False),
    ]
    assert [each.revisions for each in usage.contents if len(each.revisions) > 1] == [{A, B}]
    assert usage.shared_by(A) == usage.shared_by(B) >= len(SHARED)
    assert usage.shared_by(A2) == 0
    assert usage.unique_to(A2) >= len(b"middle")
    assert usage.total_bytes >= len(SHARED + OLD + NEW + b"middle")


def test_pruning_removes_what_it_is_told_and_can_be_repeated(filled: Filled) -> None:
    cache = filled({A: {"w": SHARED}, A2: {"w": SHARED, "c": OLD}, B: {"c": NEW}})
    old = min(A, A2)
    waste = Waste("org/m", (A, A2), (), ())
    for _ in range(2):
        with cache.reserve("org/m", "pruning it"):
            cache.prune(waste)
        usage = cache.usage("org/m")
        assert usage is not None
        assert [each.name for each in usage.revisions] == [B]
        assert [each.revisions for each in usage.contents] == [{B}]
    with pytest.raises(RevisionNotFoundError):
        cache.find("org/m", old)


def test_partial_downloads_are_part_of_the_usage_and_can_be_pruned(build: Build) -> None:
    cache = build({"org/m": CachedModel((A,), {"main": A}, unfinished=2), "org/half": CachedModel(unfinished=1)})
    usage = cache.usage("org/m")
    assert usage is not None
    assert len(usage.partial) == 2
    cache.prune(Waste("org/m", partial=tuple(each.name for each in usage.partial)))
    cache.prune(Waste("org/half", whole=True))
    assert cache.unfinished_downloads(found(cache, "org/m")) == 0
    assert list(cache.names()) == ["org/m"]
