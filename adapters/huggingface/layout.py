"""The layout of the Hugging Face hub cache: paths, references, and the record of a revision's files.

models--org--name/blobs/<digest>                     content of one file
                 /blobs/<digest>.<suffix>.incomplete partial download; our suffix is constant, so that the next run
                                                     resumes it
                 /snapshots/<commit>/<path>          symbolic links to ../../blobs/<digest>, or plain files
                 /.staging/<commit>/<path>           a snapshot before it is published, at the same depth
                 /refs/<branch or tag>               the commit it points to
                 /trees/<commit>.json                files of the revision as the hub listed them
.locks/models--org--name/<digest>.lock               held by every client that writes the blob
                        /mlxk.lock                   held by the one mlxk process that changes the model
                        /<process>.mlxk.use          held by an mlxk server that has the model in memory
                        /mlxk.return                 held by the mlxk process that asks these servers to unload it
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from mlxk.application.ports.model_cache import ManifestEntry

if TYPE_CHECKING:
    from mlxk.domain.hub import DownloadPlan, RemoteFile, RemoteModel

MAX_REFERENCE_BYTES = 256
"""A file below ``refs`` holds one commit hash; longer files are ignored."""

MAX_MANIFEST_BYTES = 64 * 1024 * 1024
"""A record has about 200 bytes per file; larger ones are ignored."""

TREE_FORMAT = 1
"""Version of the records in ``trees``, as the hub client writes them."""

PARTIAL_SUFFIX = ".mlxk.incomplete"
STAGING = ".staging"
"""Directory in the model's directory for a snapshot that is not published yet."""
MODEL_LOCK = "mlxk.lock"
USE_SUFFIX = ".mlxk.use"
"""Suffix of the file that a process locks while it uses a model, after the process id."""
RETURN_LOCK = "mlxk.return"
"""The file that a process locks while it asks the users of a model to unload it."""

_PREFIX = "models--"
_TEST_MARKER = "TEST-CACHE-SENTINEL"
_HEXADECIMAL = frozenset("0123456789abcdef")
_CACHE_TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# A cache of models; backups may leave it out.\n"


@attrs.frozen
class ModelFolder:
    """The paths of one model in the cache."""

    root: str
    """The ``hub`` directory, absolute."""
    name: str
    """``org/name``."""

    @property
    def folder_name(self) -> str:
        """Name of the model's directory."""
        return _PREFIX + self.name.replace("/", "--")

    @property
    def directory(self) -> str:
        """The model's directory."""
        return f"{self.root}/{self.folder_name}"

    @property
    def blobs(self) -> str:
        """Directory of file contents."""
        return f"{self.directory}/blobs"

    @property
    def snapshots(self) -> str:
        """Directory of revisions."""
        return f"{self.directory}/snapshots"

    @property
    def references(self) -> str:
        """Directory of branches and tags."""
        return f"{self.directory}/refs"

    @property
    def trees(self) -> str:
        """Directory of the records of revisions' files."""
        return f"{self.directory}/trees"

    @property
    def negative_cache(self) -> str:
        """Directory where the hub client records which files of a revision do not exist."""
        return f"{self.directory}/.no_exist"

    @property
    def locks(self) -> str:
        """Directory of lock files."""
        return f"{self.root}/.locks/{self.folder_name}"

    @property
    def is_valid(self) -> bool:
        """Whether a directory of the cache can have this model's name."""
        name = self.name
        return bool(name) and "\0" not in name and _TEST_MARKER not in name and _name(self.folder_name) == name

    def blob(self, digest: str) -> str:
        """Path of a complete content."""
        return f"{self.blobs}/{digest}"

    def partial(self, digest: str) -> str:
        """Path of a partially downloaded content."""
        return f"{self.blobs}/{digest}{PARTIAL_SUFFIX}"

    def lock(self, digest: str) -> str:
        """Path of the lock that every client holds while it writes a content."""
        return f"{self.locks}/{digest}.lock"

    def snapshot(self, commit: str) -> str:
        """Directory of a revision."""
        return f"{self.snapshots}/{commit}"

    def tree(self, commit: str) -> str:
        """Path of the record of a revision's files."""
        return f"{self.trees}/{commit}.json"

    def create(self) -> None:
        """Create the directories, also those that stay empty: other clients consider a model without them damaged.

        Raises:
            OSError: The cache cannot be written to.
        """
        for directory in (self.blobs, self.snapshots, self.locks):
            os.makedirs(directory, exist_ok=True)
        tag = f"{self.root}/CACHEDIR.TAG"
        if not os.path.exists(tag):
            with open(tag, "wb") as file:
                file.write(_CACHE_TAG)


def model_names(root: str) -> tuple[str, ...]:
    """Return the ``org/name`` of every cached model, sorted.

    Raises:
        OSError: The cache does not exist or cannot be read.
    """
    with os.scandir(root) as entries:
        return tuple(sorted(_name(entry.name) for entry in entries if _is_model(entry)))


def as_spelled_on_disk(folder: ModelFolder) -> ModelFolder:
    """Return a folder with the model's name as its directory spells it: macOS disks ignore case."""
    if not os.path.lexists(f"{folder.root}/{folder.folder_name.swapcase()}"):
        return folder
    with contextlib.suppress(OSError):
        names = model_names(folder.root)
        if folder.name not in names:
            matches = (name for name in names if name.casefold() == folder.name.casefold())
            return ModelFolder(folder.root, next(matches, folder.name))
    return folder


def snapshots_of(folder: ModelFolder, with_time: bool = False) -> list[tuple[int, str]]:
    """Return modification time (nanoseconds; 0 unless requested) and name of every snapshot that is not hidden."""
    found = []
    try:
        with os.scandir(folder.snapshots) as entries:
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


def read_reference(folder: ModelFolder, name: str) -> str | None:
    """Return the commit that a branch or tag points to; None if it does not exist or is no valid name."""
    content = _read(f"{folder.references}/{name}", MAX_REFERENCE_BYTES) if is_safe(name) else None
    if content is None:
        return None
    commit = content.decode("utf-8", "replace").strip()
    return commit if commit and "/" not in commit and is_safe(commit) else None


def references_to(folder: ModelFolder, commit: str) -> list[str]:
    """Return the paths of the branches and tags that point to a commit; none if their directory is a link."""
    found: list[str] = []
    if os.path.islink(folder.references):
        return found
    for parent, _, names in os.walk(folder.references):
        for name in names:
            with contextlib.suppress(OSError), open(f"{parent}/{name}", "rb") as file:
                if file.read(MAX_REFERENCE_BYTES).strip() == commit.encode():
                    found.append(f"{parent}/{name}")
    return found


def is_safe(revision: str) -> bool:
    """Whether a revision can be part of a path without leaving the model's directory."""
    return not (revision.startswith(("/", ".")) or ".." in revision or "\0" in revision)


def read_tree(folder: ModelFolder, commit: str) -> tuple[ManifestEntry, ...] | None:
    """Return the recorded files of a revision, sorted by path; None when there is no valid record."""
    content = _read(folder.tree(commit), MAX_MANIFEST_BYTES)
    if content is None:
        return None
    try:
        files = json.loads(content)["files"]
        return tuple(sorted((_manifest_entry(path, info) for path, info in files.items()), key=lambda each: each.path))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def publish_snapshot(folder: ModelFolder, plan: "DownloadPlan", links: bool) -> None:
    """Make the files of a plan visible in one step; all of their blobs must be complete.

    Args:
        folder: The model's paths.
        plan: The files.
        links: Whether to make symbolic links to the blobs, if the file system supports them; else files.

    Raises:
        OSError: The disk refuses; files that were visible before are unchanged, or complete.
    """
    model, final = plan.model, folder.snapshot(plan.model.commit)
    # The hub client records the list of files as well, so that later checks need no network.
    record = {"format_version": TREE_FORMAT, "files": {file.path: _tree_entry(file) for file in model.files}}
    _write(folder.tree(model.commit), json.dumps(record, indent=1).encode())
    if os.path.isdir(final):
        _link_all(folder, plan.files, final, links)
    else:
        _publish_new(folder, model, plan.files, links)
    if model.reference:
        _write(f"{folder.references}/{model.reference}", model.commit.encode())


def _publish_new(folder: ModelFolder, model: "RemoteModel", files: tuple["RemoteFile", ...], links: bool) -> None:
    staging, final = f"{folder.directory}/{STAGING}", folder.snapshot(model.commit)
    shutil.rmtree(staging, ignore_errors=True)
    _link_all(folder, files, f"{staging}/{model.commit}", links)
    try:
        os.rename(f"{staging}/{model.commit}", final)
    except OSError:
        if not os.path.isdir(final):
            raise
        _link_all(folder, files, final, links)  # another client has created it meanwhile
    shutil.rmtree(staging, ignore_errors=True)


def _link_all(folder: ModelFolder, files: tuple["RemoteFile", ...], directory: str, links: bool) -> None:
    for file in files:
        path, blob = f"{directory}/{file.path}", folder.blob(file.digest)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        target = "../" * (file.path.count("/") + 2) + f"blobs/{file.digest}"
        if links and os.path.islink(path) and os.readlink(path) == target:
            continue
        temporary = f"{path}.mlxk-link"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        _place(blob, target if links else None, temporary)
        os.replace(temporary, path)


def _place(blob: str, target: str | None, path: str) -> None:
    """Make a symbolic link with a target, else a hard link to the blob; copy the blob where links are not supported."""
    with contextlib.suppress(OSError):
        if target is None:
            os.link(blob, path)
        else:
            os.symlink(target, path)
        return
    shutil.copyfile(blob, path)  # a file system without links, such as exFAT


def _tree_entry(file: "RemoteFile") -> Mapping[str, object]:
    entry: dict[str, object] = {"size": file.size_bytes, "blob_id": file.blob_id}
    if file.sha256:
        entry |= {"lfs_sha256": file.sha256, "lfs_size": file.size_bytes}
    if file.chunk_hash:
        entry["xet_hash"] = file.chunk_hash
    return entry


def _manifest_entry(path: str, info: dict[str, object]) -> ManifestEntry:
    size, digest = info["size"], info.get("lfs_sha256") or info.get("blob_id")
    if not isinstance(size, int) or not isinstance(path, str):
        raise ValueError("not a manifest entry")
    known = isinstance(digest, str) and len(digest) in {40, 64} and _HEXADECIMAL.issuperset(digest)
    return ManifestEntry(path, size, str(digest) if known else None)


def _is_model(entry: "os.DirEntry[str]") -> bool:
    name = entry.name
    named = name.startswith(_PREFIX) and len(name) > len(_PREFIX) and _TEST_MARKER not in name
    return named and (_is_directory(entry) or is_dangling(entry.path))


def is_dangling(path: str) -> bool:
    """Whether a path is a link to a missing target, such as a disk that is not connected; a cycle of links is not."""
    if not os.path.islink(path):
        return False
    try:
        os.stat(path)
    except OSError as error:
        return error.errno != errno.ELOOP
    return False


def _is_directory(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a cycle of links
        return False


def _name(folder: str) -> str:
    return folder[len(_PREFIX) :].replace("--", "/")


def _read(path: str, limit: int) -> bytes | None:
    """Return the content of a file; None if it cannot be read or has more than ``limit`` bytes."""
    try:
        with open(path, "rb", buffering=0, opener=_open_without_blocking) as file:
            content = file.read(limit + 1)
    except (OSError, ValueError):
        return None
    return content if content is not None and len(content) <= limit else None


def _open_without_blocking(path: str, flags: int) -> int:
    """Open a file; a named pipe without a writer does not block."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _write(path: str, content: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def linked_blob(path: str, blobs: str) -> str | None:
    """Return the name of the blob that a link in a snapshot points to; None if it points elsewhere.

    Only the first link is followed: a blob may itself be a link into the shared store.

    Args:
        path: Path of the link.
        blobs: Real path of the directory of the model's blobs.
    """
    target = os.path.join(os.path.realpath(os.path.dirname(path)), os.readlink(path))
    directory, blob = os.path.split(os.path.normpath(target))
    return blob if directory == blobs else None


def shared_target(folder: ModelFolder, path: str) -> Path | None:
    """Return the target of a blob that is a link into the store shared by models; None for another blob."""
    if not os.path.islink(path):
        return None
    from huggingface_hub.utils import _shared_blobs  # imported on use: listing must not import the hub client

    return _shared_blobs.shared_blob_target(path, folder.root)


def linked_parts(folder: ModelFolder) -> tuple[str, ...]:
    """Return the directories in a model's directory that are links."""
    names = ("blobs", "refs", "snapshots", "trees", *(f"snapshots/{name}" for name in own_entries(folder.snapshots)))
    return tuple(sorted(name for name in names if os.path.islink(f"{folder.directory}/{name}")))


def own_entries(directory: str) -> list[str]:
    """Return the entries of a directory, sorted; none if it is a link."""
    return [] if os.path.islink(directory) else entries(directory)


def entries(directory: str) -> list[str]:
    """Return the entries of a directory, sorted; none if it does not exist."""
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
