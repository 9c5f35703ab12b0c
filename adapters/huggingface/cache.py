"""The hub cache on disk: the only place that knows its layout.

    models--org--name/refs/<branch or tag>         the commit it stands for
                     /snapshots/<commit>/<path>    links to ../../blobs/<digest>, or plain files
                     /blobs/<digest>               and <digest>.<suffix>.incomplete while downloading
                     /trees/<commit>.json          what the revision should hold

It finds models and revisions; what is in a snapshot is read through the ``ModelFiles`` port. The hub client is not
imported: one directory scan answers what its own scan needs a hundred milliseconds for.
"""

import json
import os

from mlxk.application.ports.model_cache import ManifestEntry, ModelCache
from mlxk.domain.errors import Advice, Remedy, RevisionNotFoundError, StorageError
from mlxk.domain.models.model import ModelHandle, Origin

MAX_REFERENCE_BYTES = 256
"""A file below ``refs`` holds one commit hash; more is not read."""

MAX_MANIFEST_BYTES = 64 * 1024 * 1024
"""A manifest takes about 200 bytes a file; a larger one than this is not believed."""

_PREFIX = "models--"
_MARKER_OF_TESTS = "TEST-CACHE-SENTINEL"
_HEXADECIMAL = frozenset("0123456789abcdef")


class HuggingFaceModelCache(ModelCache):
    """Reads the ``hub`` directory of the Hugging Face cache. Every call looks at the disk anew.

    Args:
        root: The ``hub`` directory; it need not exist.
    """

    def __init__(self, root: str) -> None:
        self._root = os.path.abspath(root)

    def names(self) -> tuple[str, ...]:
        """Return the ``org/name`` of every cached model, sorted; empty when there is no cache.

        Raises:
            StorageError: The cache exists but cannot be read.
        """
        try:
            with os.scandir(self._root) as entries:
                return tuple(sorted(_name(entry.name) for entry in entries if _is_model(entry)))
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise StorageError(f"the model cache cannot be read: {error.strerror}") from error

    def find(self, name: str, revision: str | None = None) -> ModelHandle | None:
        """Return the handle of one cached model by its exact name, or None when it is not cached.

        A model whose snapshots cannot be read counts as one that has none.

        Raises:
            RevisionNotFoundError: The model is cached but that revision is not, or the prefix fits several.
            StorageError: The cache exists but cannot be read.
        """
        folder = self._folder(name)
        if folder is None:
            return None
        chosen = _current(folder) if revision is None else None
        if chosen is None:
            if not os.path.isdir(folder):
                self._check_readable()
                return None
            chosen = _newest(folder) if revision is None else _named(folder, name, revision)
        directory = f"{folder}/snapshots/{chosen}" if chosen else folder
        return ModelHandle(name, directory, Origin.CACHE, chosen)

    def manifest(self, handle: ModelHandle) -> tuple[ManifestEntry, ...] | None:
        """Return what the hub listed for a handle's revision, sorted by path, or None when there is no such record."""
        folder, commit = self._folder(handle.name), handle.commit
        if folder is None or commit is None:
            return None
        content = _read(f"{folder}/trees/{commit}.json", MAX_MANIFEST_BYTES)
        if content is None:
            return None
        try:
            files = json.loads(content)["files"]
            return tuple(sorted((_entry(path, info) for path, info in files.items()), key=lambda entry: entry.path))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def unfinished_downloads(self, handle: ModelHandle) -> int:
        """Return how many files of this model were left half downloaded."""
        folder = self._folder(handle.name)
        if folder is None:
            return 0
        try:
            with os.scandir(f"{folder}/blobs") as entries:
                return sum(entry.name.endswith(".incomplete") for entry in entries)
        except OSError:
            return 0

    def _folder(self, name: str) -> str | None:
        """The directory of a model; None when no directory in the cache can have that name."""
        folder = _PREFIX + name.replace("/", "--")
        if not name or "\0" in name or _name(folder) != name or _MARKER_OF_TESTS in name:
            return None
        return f"{self._root}/{folder}"

    def _check_readable(self) -> None:
        try:
            os.scandir(self._root).close()
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"the model cache cannot be read: {error.strerror}") from error


def _is_model(entry: "os.DirEntry[str]") -> bool:
    name = entry.name
    return (
        name.startswith(_PREFIX) and len(name) > len(_PREFIX) and _MARKER_OF_TESTS not in name and _is_directory(entry)
    )


def _is_directory(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry leads to a directory; a link around in a circle, at which ``is_dir`` fails, does not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _name(folder: str) -> str:
    return folder[len(_PREFIX) :].replace("--", "/")


def _current(folder: str) -> str | None:
    """The snapshot ``refs/main`` points to, if it is here."""
    commit = _reference(folder, "main")
    return commit if commit and os.path.isdir(f"{folder}/snapshots/{commit}") else None


def _newest(folder: str) -> str | None:
    dated = sorted(_snapshots(folder, with_time=True))
    return dated[-1][1] if dated else None


def _named(folder: str, name: str, revision: str) -> str:
    """The snapshot that a branch, a tag, a commit or a prefix of one means."""
    here = sorted(snapshot for _, snapshot in _snapshots(folder))
    if _is_safe(revision):
        for exact in (revision, _reference(folder, revision)):
            if exact in here:
                return exact
    fitting = [snapshot for snapshot in here if revision and snapshot.startswith(revision)]
    if len(fitting) == 1:
        return fitting[0]
    fault = "fits several snapshots" if fitting else "is not in the cache"
    raise RevisionNotFoundError(
        f"revision '{revision}' of '{name}' {fault}",
        hint="Give more digits of the commit." if fitting else Advice(Remedy.FETCH, {"name": f"{name}@{revision}"}),
        matches=tuple(fitting or here),
    )


def _snapshots(folder: str, with_time: bool = False) -> list[tuple[int, str]]:
    """Modification time (nanoseconds, 0 unless asked for) and name of every snapshot; hidden directories are none."""
    found = []
    try:
        with os.scandir(f"{folder}/snapshots") as entries:
            for entry in entries:
                if entry.name.startswith(".") or not _is_directory(entry):
                    continue
                try:
                    found.append((entry.stat().st_mtime_ns if with_time else 0, entry.name))
                except OSError:
                    continue
    except OSError:
        return []
    return found


def _reference(folder: str, name: str) -> str | None:
    """The snapshot a branch or tag points to; None when there is no such reference or it points outside."""
    content = _read(f"{folder}/refs/{name}", MAX_REFERENCE_BYTES)
    if content is None:
        return None
    commit = content.decode("utf-8", "replace").strip()
    return commit if commit and "/" not in commit and _is_safe(commit) else None


def _is_safe(revision: str) -> bool:
    """Whether a text may become part of a path below the model's directory."""
    return not (revision.startswith(("/", ".")) or ".." in revision or "\0" in revision)


def _read(path: str, limit: int) -> bytes | None:
    """The content of a regular file of at most ``limit`` bytes, else None."""
    try:
        with open(path, "rb", buffering=0, opener=_open_without_waiting) as file:
            content = file.read(limit + 1)
    except (OSError, ValueError):
        return None
    return content if content is not None and len(content) <= limit else None


def _open_without_waiting(path: str, flags: int) -> int:
    """Opening a named pipe must not wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _entry(path: str, info: dict[str, object]) -> ManifestEntry:
    size, digest = info["size"], info.get("lfs_sha256") or info.get("blob_id")
    if not isinstance(size, int) or not isinstance(path, str):
        raise ValueError("not a manifest entry")
    known = isinstance(digest, str) and len(digest) in {40, 64} and _HEXADECIMAL.issuperset(digest)
    return ManifestEntry(path, size, str(digest) if known else None)
