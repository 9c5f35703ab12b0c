"""What the loopback hub holds: repositories, their commits and the content of their files.

A regular file is known by its git blob sha1, a large one (LFS) by its sha256; a commit is a whole tree of files.
"""

import fnmatch
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import attrs

LFS_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.gguf", "*.npz", "*.onnx", "*.zip", "*.png", "*.jpg", "*.wav")
GIT_ATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS).encode()
LFS_THRESHOLD = 10_000_000
"""Bytes; larger files are LFS files whatever their name."""


def git_sha1(content: bytes) -> str:
    """Return what git calls a blob of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@attrs.frozen
class Entry:
    """One file of one commit."""

    size: int
    blob_id: str
    """git sha1; of the pointer file when LFS."""
    key: str
    """Name of the content in the storage: sha256 when LFS, git sha1 otherwise."""
    pointer_size: int = 0
    """Bytes of the pointer file; 0 when not LFS."""


Tree = dict[str, Entry]


@attrs.frozen
class Commit:
    """One commit: the whole tree."""

    files: Tree
    parent: str | None
    title: str
    time: float


@attrs.define
class Repository:
    """One repository."""

    id: str
    kind: str = "models"
    private: bool = False
    gated: str | bool = False
    """False, "auto" or "manual"."""
    disabled: bool = False
    readers: frozenset[str] = frozenset()
    """Users let into a private or gated repository."""
    tags: tuple[str, ...] = ()
    library_name: str | None = None
    downloads: int = 0
    parameters: Mapping[str, int] | None = None
    """Numbers of elements by their type, as the listing states them; None where it does not."""
    commits: dict[str, Commit] = attrs.field(factory=dict)
    branches: dict[str, str] = attrs.field(factory=dict)

    def head(self, branch: str = "main") -> str:
        """Return the newest commit of a branch."""
        return self.branches[branch]

    def files(self, branch: str = "main") -> Tree:
        """Return the tree at the head of a branch."""
        return self.commits[self.head(branch)].files


class Storage:
    """Contents by key, on disk so that large ones can be sent without being held in memory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        """Where the content of a key is."""
        return self.root / key

    def has(self, key: str) -> bool:
        """Whether a content was stored."""
        return self.path(key).exists()

    def put(self, key: str, content: bytes) -> None:
        """Store a content under a key."""
        self.path(key).write_bytes(content)

    def add(self, path: str, content: bytes) -> Entry:
        """Store a file of a commit, as git or LFS would."""
        if is_lfs(path, len(content), content[:512]):
            key = hashlib.sha256(content).hexdigest()
            self.put(key, content)
            return lfs_entry(key, len(content))
        return self.add_regular(content)

    def add_regular(self, content: bytes) -> Entry:
        """Store a file that is not LFS."""
        key = git_sha1(content)
        self.put(key, content)
        return Entry(len(content), key, key)


def is_lfs(path: str, size: int, sample: bytes) -> bool:
    """Whether the hub keeps a file as LFS."""
    name = os.path.basename(path)
    return size > 0 and (
        size >= LFS_THRESHOLD or b"\0" in sample or any(fnmatch.fnmatch(name, pattern) for pattern in LFS_PATTERNS)
    )


def lfs_entry(key: str, size: int) -> Entry:
    """Describe an LFS file by its sha256."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{key}\nsize {size}\n".encode()
    return Entry(size, git_sha1(pointer), key, len(pointer))


def commit(repository: Repository, files: Mapping[str, Entry], branch: str, title: str) -> str:
    """Add a commit to a branch and return its sha."""
    parent = repository.branches.get(branch)
    what = [repository.id, parent, title, len(repository.commits), sorted((p, e.key) for p, e in files.items())]
    sha = hashlib.sha1(json.dumps(what).encode()).hexdigest()
    repository.branches[branch] = sha
    repository.commits[sha] = Commit(dict(files), parent, title, time.time())
    return sha
