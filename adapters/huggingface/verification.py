"""Offline verification of content: the digest of every file against the one recorded at download.

Digests come from the manifest of the revision, else from the name of the blob that a snapshot links to (64 hexadecimal
digits: sha256 of the content; 40: git's sha1 of it). A blob that is a link into the shared store is named by its digest
too. Plain files without a manifest cannot be verified. The digests of a workspace are those of its record, which
has digests of weights only if it is deep.
"""

import hashlib
import os
from collections.abc import Callable

import attrs

from mlxk.application.ports.model_cache import ManifestEntry, ModelCache
from mlxk.application.ports.model_directories import ContentVerifier, VerificationResult, WorkspaceStore
from mlxk.domain.errors import StorageError
from mlxk.domain.models.model import SENTINEL_NAME, ModelHandle, Origin

READ_BYTES = 1024 * 1024
"""Chunk size; progress is reported after each."""

_HEXADECIMAL = frozenset("0123456789abcdef")
_DIGEST_LENGTHS = frozenset({40, 64})


@attrs.frozen
class _Check:
    """One file to hash."""

    path: str
    location: str
    size: int
    digest: str


class HuggingFaceContentVerifier(ContentVerifier):
    """Hashes the files of one model sequentially.

    Args:
        cache: Source of the manifests of cached models.
        workspaces: Source of the records of workspaces; without it their files have no digests.
    """

    def __init__(self, cache: ModelCache, workspaces: WorkspaceStore | None = None) -> None:
        self._cache = cache
        self._workspaces = workspaces

    def verify(self, handle: ModelHandle, progress: Callable[[int, int], None]) -> VerificationResult:
        """Hash every file that has a digest.

        A file whose size differs from the manifest, and a dangling link, are damaged without being read. Missing files
        are found by the health check instead.
        """
        manifest = {entry.path: entry for entry in self._manifest(handle) or ()}
        checks: list[_Check] = []
        unverifiable: list[str] = []
        damaged: list[str] = []
        for path, location in _files(handle.directory):
            recorded = manifest.get(path)
            digest, size = _digest(recorded, location), _size(location)
            if size is None or (recorded and digest and recorded.size_bytes != size):
                damaged.append(path)
            elif digest is None:
                unverifiable.append(path)
            else:
                checks.append(_Check(path, location, size, digest))
        damaged_by_content = _damaged(checks, progress)
        return VerificationResult(
            checked=len(checks) + len(damaged),
            unverifiable=tuple(unverifiable),
            damaged=tuple(sorted(damaged + damaged_by_content)),
        )

    def _manifest(self, handle: ModelHandle) -> tuple[ManifestEntry, ...] | None:
        if handle.origin is Origin.CACHE:
            return self._cache.manifest(handle)
        if handle.origin is Origin.WORKSPACE and self._workspaces:
            return self._workspaces.manifest(handle)
        return None


def _files(directory: str) -> list[tuple[str, str]]:
    """Return path and location of every file and dangling link, sorted; linked directories are not entered."""
    found, pending = [], [("", directory)]
    while pending:
        base, folder = pending.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append((f"{base}{entry.name}/", entry.path))
                    elif _counts(entry):
                        found.append((base + entry.name, entry.path))
        except OSError as error:
            raise StorageError(f"the model's directory cannot be read: {error.strerror}") from error
    return sorted(found)


def _counts(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is verified: a file or a dangling link, but not a workspace's record or a device."""
    if entry.name == SENTINEL_NAME:
        return False
    return os.path.isfile(entry.path) or (entry.is_symlink() and not os.path.exists(entry.path))


def _size(location: str) -> int | None:
    try:
        return os.stat(location).st_size
    except OSError:
        return None


def _digest(recorded: ManifestEntry | None, location: str) -> str | None:
    if recorded and recorded.digest:
        return recorded.digest
    try:
        folder, blob = os.path.split(os.readlink(location))
    except OSError:
        return None
    # In the shared store the directory of a blob has a two-digit name, and the blob's name is not its digest.
    named_by_digest = os.path.basename(folder) == "blobs" and len(blob) in _DIGEST_LENGTHS
    return blob if named_by_digest and _HEXADECIMAL.issuperset(blob) else None


class _BytesRead:
    """Reports progress, limited to the total in case a file grows meanwhile."""

    def __init__(self, total: int, report: Callable[[int, int], None]) -> None:
        self._total, self._report, self._done = total, report, 0
        report(0, total)

    def add(self, count: int) -> None:
        """Count more bytes."""
        self._done = min(self._done + count, self._total)
        self._report(self._done, self._total)


def _damaged(checks: list[_Check], progress: Callable[[int, int], None]) -> list[str]:
    """Hash the files and return the paths of those that differ or cannot be read."""
    total = sum(check.size for check in checks)
    read = _BytesRead(total, progress)
    buffer = memoryview(bytearray(READ_BYTES))
    damaged = [check.path for check in checks if not _is_intact(check, buffer, read)]
    read.add(total)
    return damaged


def _is_intact(check: _Check, buffer: memoryview, read: _BytesRead) -> bool:
    digest = hashlib.sha256() if len(check.digest) == 64 else _git_blob(check.size)
    try:
        with open(check.location, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                read.add(count)
    except OSError:
        return False
    return digest.hexdigest() == check.digest


def _git_blob(size: int) -> "hashlib._Hash":
    """Return a hash for git's name of a blob; it detects damage, not forgery."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
