"""A folder of snapshots: one file each, found by keyed hashes, within a budget of bytes.

A file is called ``VERSIONS-TENANT-FACTS-TOKENS-PROMPT.safetensors``: the number of its tokens, and hashes of versions,
tenant, facts and prompt. The hashes are keyed with a secret of the folder, so that a name tells nothing about prompts
and API keys. Readers verify them: the file holds the facts and the tokens, and a keyed checksum of the whole file.

Several processes may share a folder. Readers need no lock: files appear by renaming and never change. Writers hold the
folder's lock from the check of the budget to the renaming; the lock ends with its process, so any temporary file that
its holder sees is left over from a process that died.

Only files with names of this form are counted and deleted. Files of other versions are evicted first, then the least
recently used.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import attrs

from mlxk.adapters.mlx.engine.snapshots import SCHEMA, Snapshot, header_of, read_snapshot
from mlxk.application.ports.system import EventLog
from mlxk.domain.errors import StorageError

FOLDER = "mlxk-prefixes"
"""Name of our folder within the configured directory, which may hold other files."""

_SECRET_BYTES = 32

_NAME = re.compile(
    r"(?P<versions>[0-9a-f]{8})-[0-9a-f]{16}-[0-9a-f]{32}-(?P<tokens>[0-9]{1,9})-[0-9a-f]{32}\.safetensors(?P<temporary>\.tmp)?"
)


@attrs.frozen
class Label:
    """Selects the snapshots that a prompt may use."""

    facts: Mapping[str, str]
    prefix: str
    """Beginning of their file names: the hashes of versions, tenant and facts."""


@attrs.define
class FolderCounters:
    """Totals since the process began; read from any thread."""

    writes: int = 0
    evictions: int = 0
    refusals: int = 0
    """Snapshots not written, for lack of space."""
    faults: int = 0
    """Damaged files, which were deleted."""


@attrs.frozen
class _Entry:
    path: str
    stale: bool
    """Whether another version wrote it."""
    used: float
    size: int


class PrefixFolder:
    """The folder; thread-safe.

    Args:
        parent: Absolute path of the directory in which it is created.
        max_bytes: Limit of all snapshots together.
        versions: Versions of the programs that wrote usable snapshots.
        log: Receives failures.
        free_share: Share of the file system that must stay free.

    Raises:
        StorageError: The folder cannot be created, or belongs to another user.
    """

    def __init__(self, parent: str, max_bytes: int, versions: str, log: EventLog, free_share: float) -> None:
        self.max_bytes = max_bytes
        self.counters = FolderCounters()
        self._path = os.path.join(parent, FOLDER)
        self._log = log
        self._free_share = free_share
        self._failing = False
        """Whether the last write failed; a series of failures is logged once."""
        self._listing: tuple[int, list[_Entry]] = (0, [])
        """The last listing of the folder: its modification time, nanoseconds, and its entries."""
        self._versions_text = f"{SCHEMA} {versions}".encode()
        self._secret = secrets.token_bytes(_SECRET_BYTES)
        try:
            self._open_folder()
        except OSError as error:
            raise StorageError(
                f"prefix_cache_dir: '{self._path}' cannot be used: {error.strerror}",
                hint="Name a folder that this user may write to.",
            ) from error

    def label(self, tenant: str, facts: Mapping[str, str]) -> Label:
        """Return the label of the snapshots of a tenant with these facts."""
        text = json.dumps(facts, sort_keys=True).encode()
        return Label(facts, f"{self._versions}-{self._tenant(tenant)}-{self._keyed(text, 16)}-")

    def name(self, label: Label, tokens: bytes) -> str:
        """Return the file name of a snapshot."""
        return f"{label.prefix}{len(tokens) // 4}-{self._keyed(tokens, 16)}.safetensors"

    def longest(self, label: Label, tokens: bytes, pending: Sequence[str] = ()) -> str | None:
        """Return the name of the file with the longest prefix of a prompt; None when there is none.

        Args:
            label: Label of the prompt.
            tokens: The packed prompt, four bytes a token.
            pending: Names of files that are being written.
        """
        names = [name for name in (*self._names(), *pending) if name.startswith(label.prefix)]
        counts = {name: token_count(name) for name in names if _is_complete(name)}
        digest, position, longest = blake2b(key=self._secret, digest_size=16), 0, None
        for count in sorted({count for count in counts.values() if count * 4 <= len(tokens)}):
            digest.update(tokens[position : count * 4])
            position = count * 4
            name = f"{label.prefix}{count}-{digest.hexdigest()}.safetensors"
            longest = name if name in counts else longest
        return longest

    def read(self, name: str, label: Label) -> Snapshot | None:
        """Read a file and verify all of it; a damaged file is deleted, and None returned."""
        path = os.path.join(self._path, name)
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                snapshot = read_snapshot(file, self._secret)
        except (FileNotFoundError, MemoryError):
            return None  # evicted meanwhile, or too large for memory
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self.discard(name, type(error).__name__)
            return None
        if snapshot.facts != label.facts or self.name(label, snapshot.tokens) != name:
            self.discard(name, "other facts")
            return None
        self.touch(name)
        return snapshot

    def discard(self, name: str, reason: str) -> None:
        """Delete a damaged file."""
        self.counters.faults += 1
        self._log.warning("a kept prompt on disk is damaged; it is deleted and computed again", reason=reason)
        self._delete(os.path.join(self._path, name))

    def write(self, name: str, snapshot: Snapshot) -> bool:
        """Write a file within the budget, evicting others; return whether it exists now.

        A failure is counted; the first one after a success is logged.
        """
        path, secret = os.path.join(self._path, name), self._secret
        header = header_of(snapshot, secret)
        needed = len(header) + snapshot.size_bytes
        try:
            if self._stored_secret() != secret:
                self._open_folder()  # it was deleted
                if self._secret != secret:
                    return False  # another process has created it anew, and ``name`` was made with the old secret
            with self._locked():
                if os.path.exists(path):
                    os.utime(path)
                    return True
                lacking = self._make_room(needed)
                if lacking is None:
                    self._write(path, header, snapshot)
        except OSError as error:
            lacking = error.strerror or type(error).__name__
        if lacking is not None:
            self._refused(lacking, needed)
            return False
        self.counters.writes += 1
        self._failing = False
        return True

    def usage(self, tenant: str | None) -> tuple[int, int]:
        """Return the number of files of a tenant, or of all, and their size in bytes."""
        try:
            changed = os.stat(self._path).st_mtime_ns
        except OSError:
            return 0, 0
        if self._listing[0] != changed:
            self._listing = (changed, self._scan())
        sizes = [entry.size for entry in self._listing[1] if self._belongs(entry, tenant)]
        return len(sizes), sum(sizes)

    def clear(self, tenant: str | None) -> None:
        """Delete the files of a tenant, or all."""
        for entry in self._scan():
            if self._belongs(entry, tenant):
                self._delete(entry.path)
        self._listing = (0, [])

    def size_of(self, name: str) -> int:
        """Return the size of a file, bytes; 0 when it is gone."""
        try:
            return os.stat(os.path.join(self._path, name)).st_size
        except OSError:
            return 0

    def touch(self, name: str) -> None:
        """Mark a file as recently used."""
        with contextlib.suppress(OSError):
            os.utime(os.path.join(self._path, name))

    def _belongs(self, entry: _Entry, tenant: str | None) -> bool:
        if tenant is None:
            return True
        return os.path.basename(entry.path).startswith(f"{self._versions}-{self._tenant(tenant)}-")

    def _tenant(self, tenant: str) -> str:
        return self._keyed(tenant.encode(), 8)

    def _keyed(self, data: bytes, size: int) -> str:
        return blake2b(data, key=self._secret, digest_size=size).hexdigest()

    def _open_folder(self) -> None:
        """Create the folder where it is missing, read its secret, and delete leftover files."""
        self._create_folder()
        with self._locked():
            self._secret = self._shared_secret()
            self._versions = self._keyed(self._versions_text, 4)
            self._delete_leftovers()

    def _create_folder(self) -> None:
        with contextlib.suppress(FileExistsError):
            os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
            os.mkdir(self._path, 0o700)
        found = os.lstat(self._path)
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "it belongs to another user")
        os.chmod(self._path, 0o700)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(os.path.join(self._path, "lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _shared_secret(self) -> bytes:
        """Return the secret of the folder, after storing this process's secret where it has none; under the lock."""
        stored = self._stored_secret()
        if stored is not None:
            return stored
        path = os.path.join(self._path, "secret")
        with _created(f"{path}.tmp") as file:
            file.write(self._secret)
        os.replace(f"{path}.tmp", path)
        return self._secret

    def _stored_secret(self) -> bytes | None:
        path = os.path.join(self._path, "secret")
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                secret = file.read(_SECRET_BYTES + 1)
        except FileNotFoundError:
            return None
        return secret if len(secret) == _SECRET_BYTES else None

    def _names(self) -> list[str]:
        try:
            return os.listdir(self._path)
        except OSError:
            return []

    def _delete_leftovers(self) -> None:
        """Delete the temporary files of processes that died; under the lock."""
        for name in self._names():
            match = _NAME.fullmatch(name)
            if name == "secret.tmp" or (match is not None and match["temporary"]):
                self._delete(os.path.join(self._path, name))

    def _scan(self) -> list[_Entry]:
        entries = []
        for name in self._names():
            match = _NAME.fullmatch(name)
            if match is not None and match["temporary"] is None:
                path = os.path.join(self._path, name)
                with contextlib.suppress(OSError):
                    found = os.lstat(path)
                    entries.append(_Entry(path, match["versions"] != self._versions, found.st_mtime, found.st_size))
        return entries

    def _make_room(self, needed: int) -> str | None:
        """Evict files until so many bytes fit; return what is lacking if they never fit. Under the lock."""
        self._delete_leftovers()
        entries = sorted(self._scan(), key=lambda entry: (not entry.stale, entry.used))
        surplus = sum(entry.size for entry in entries) + needed - self.max_bytes
        if needed > self.max_bytes:
            return "budget"
        evicted, freed = [], 0
        for entry in entries:
            if freed >= surplus:
                break
            evicted.append(entry)
            freed += entry.size
        disk = shutil.disk_usage(self._path)
        if disk.free + freed - needed < self._free_share * disk.total:
            return "free space"
        for entry in evicted:
            self._delete(entry.path)
            self.counters.evictions += 1
        return None

    def _refused(self, lacking: str, needed: int) -> None:
        self.counters.refusals += 1
        if not self._failing:
            self._failing = True
            self._log.warning("prompts are not kept on disk for now", lacking=lacking, bytes=needed)

    def _write(self, path: str, header: bytes, snapshot: Snapshot) -> None:
        try:
            with _created(f"{path}.tmp") as file:
                for each in (header, *snapshot.data):
                    file.write(each)
            os.replace(f"{path}.tmp", path)
        except OSError:
            self._delete(f"{path}.tmp")
            raise

    def _delete(self, path: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(path)


def token_count(name: str) -> int:
    """Return the number of tokens of a snapshot by its file name; 0 for other names."""
    match = _NAME.fullmatch(name)
    return 0 if match is None else int(match["tokens"])


def _is_complete(name: str) -> bool:
    match = _NAME.fullmatch(name)
    return match is not None and match["temporary"] is None


def _created(path: str) -> Any:  # noqa: ANN401 - a binary file
    """Open a new file that only this user may read."""
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb")
