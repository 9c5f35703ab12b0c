"""Whatever lies in a cache or a workspace home, reading it ends in an answer or in one of our errors."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxk.adapters.filesystem.model_files import FilesystemModelFiles
from mlxk.adapters.filesystem.workspaces import FilesystemWorkspaceStore
from mlxk.adapters.huggingface.cache import HuggingFaceModelCache
from mlxk.adapters.huggingface.verification import HuggingFaceContentVerifier
from mlxk.domain.errors import MlxkError
from mlxk.domain.models.model import SENTINEL_NAME, ModelHandle

COMMIT = "a" * 40
NAMES = (
    "models--org--m", "models--n", "snapshots", "refs", "blobs", "trees", "main", COMMIT, f"{COMMIT}.json",
    "config.json", "model.safetensors", SENTINEL_NAME, ".git", "x.tmp", "x.incomplete",
)  # fmt: skip
KEYS = ("managed", "hash_algorithm", "content_hash", "file_index", "exclude_patterns", "created_at", "path", "size",
        "mtime_ns", "sha", "deep_sha", "files", "blob_id", "lfs_sha256")  # fmt: skip


TARGETS = (".", "..", "main", "nowhere", "config.json", "/etc/hostname", f"../../blobs/{COMMIT}")
SCALARS = (None, True, 0, -1, 2**70, 1.5, "v2", "sha256:", "../x", "config.json", "", COMMIT)


def value(random: Random, depth: int = 0) -> object:
    """Anything JSON can say, with the names that mean something to a reader."""
    kind = random.random()
    if depth > 2 or kind < 0.4:
        return random.choice(SCALARS)
    if kind < 0.6:
        return [value(random, depth + 1) for _ in range(random.randint(0, 3))]
    fields = {random.choice(KEYS): value(random, depth + 1) for _ in range(random.randint(0, 6))}
    return {**fields, "managed": True, "hash_algorithm": "v2"} if depth == 0 else fields


def plant(random: Random, directory: Path, depth: int = 0) -> None:
    """Fill a directory with directories, links, named pipes and files, under names that mean something to a reader."""
    directory.mkdir()
    for name in NAMES:
        path, kind = directory / name, random.random()
        if kind < 0.4 + 0.2 * depth:
            continue
        if kind < 0.7 and depth < 3:
            plant(random, path, depth + 1)
        elif kind < 0.8:
            path.symlink_to(random.choice((*TARGETS, name)))
        elif kind < 0.84:
            os.mkfifo(path)
        elif kind < 0.9:
            path.write_bytes(random.randbytes(random.randint(0, 40)))
        else:
            path.write_text(json.dumps(value(random)))


@given(seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_reading_any_tree_ends_in_an_answer_or_in_one_of_our_errors(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    outer = tmp_path_factory.mktemp("tree")
    plant(Random(seed), outer / "root")
    root = str(outer / "root")
    cache, store, files = HuggingFaceModelCache(root), FilesystemWorkspaceStore(root), FilesystemModelFiles()
    verifier = HuggingFaceContentVerifier(cache, store)
    for handle in handles(cache, store, root):
        cache.manifest(handle)
        cache.unfinished_downloads(handle)
        store.read(handle)
        store.manifest(handle)
        with contextlib.suppress(MlxkError):
            for entry in files.list(handle.directory).files:
                files.read(handle.directory, entry.path, 100)
        with contextlib.suppress(MlxkError):
            verifier.verify(handle, lambda done, total: None)
        with contextlib.suppress(MlxkError):
            store.recalculate(handle, deep=True)
    shutil.rmtree(outer)


def handles(cache: HuggingFaceModelCache, store: FilesystemWorkspaceStore, root: str) -> Iterator[ModelHandle]:
    for name in cache.names():
        for revision in (None, "main", "a"):
            with contextlib.suppress(MlxkError):
                handle = cache.find(name, revision)
                assert handle is not None
                yield handle
    yield from filter(None, map(store.find, store.names()))
    yield from store.below(f"{root}/m")


LOOPS: dict[str, Callable[[Path], object]] = {
    "model": lambda root: (root / "models--org--loop").symlink_to("models--org--loop"),
    "snapshot": lambda root: (root / "models--org--m/snapshots/loop").symlink_to("loop"),
    "workspace": lambda root: (root / "loop").symlink_to("loop"),
}


@pytest.mark.parametrize("place", list(LOOPS))
def test_one_link_in_a_circle_does_not_hide_the_others(tmp_path: Path, place: str) -> None:
    snapshot = tmp_path / "models--org--m" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (tmp_path / "w").mkdir()
    (tmp_path / "w/config.json").write_text("{}")
    LOOPS[place](tmp_path)
    cache = HuggingFaceModelCache(str(tmp_path))
    assert cache.names() == ("org/m",)
    handle = cache.find("org/m")
    assert handle is not None
    assert handle.revision == COMMIT
    assert FilesystemWorkspaceStore(str(tmp_path)).names() == ("w",)
