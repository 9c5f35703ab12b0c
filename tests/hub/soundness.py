"""Whether a cache is a sound hub cache: what ``hf cache verify`` and ``hf cache ls`` would find, without a hub."""

import hashlib
import json
from pathlib import Path

from hub.storage import git_sha1

LEFTOVERS = (".tmp", ".mlxk-link")


def assert_sound(cache: Path) -> None:
    """Hold a whole cache against the digests it records, and let the hub client read it.

    Every content has its digest as its name, every snapshot's file is a content or a plain file of the recorded digest,
    every reference names a snapshot, and nothing that only a running program makes is left.
    """
    if not cache.exists():
        return
    from huggingface_hub import scan_cache_dir

    for folder in cache.glob("models--*"):
        for blob in (folder / "blobs").iterdir():
            if not blob.name.endswith(".incomplete"):
                assert blob.name in _digests(blob.read_bytes()), blob
        for snapshot in (folder / "snapshots").iterdir():
            _assert_as_recorded(folder, snapshot)
        for reference in filter(Path.is_file, (folder / "refs").rglob("*")):
            assert (folder / "snapshots" / reference.read_text()).is_dir(), reference
        assert not (folder / ".staging").exists()
        assert [path for path in folder.rglob("*") if path.name.endswith(LEFTOVERS)] == []
    assert scan_cache_dir(cache).warnings == []


def _assert_as_recorded(folder: Path, snapshot: Path) -> None:
    tree = folder / "trees" / f"{snapshot.name}.json"
    recorded = json.loads(tree.read_text())["files"] if tree.exists() else {}
    for path in snapshot.rglob("*"):
        if path.is_dir():
            continue
        content = path.read_bytes()  # fails for a link that leads nowhere
        entry = recorded.get(path.relative_to(snapshot).as_posix())
        if entry:
            assert entry["size"] == len(content), path
            assert (entry.get("lfs_sha256") or entry["blob_id"]) in _digests(content), path


def _digests(content: bytes) -> set[str]:
    return {hashlib.sha256(content).hexdigest(), git_sha1(content)}
