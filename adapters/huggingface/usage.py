"""Disk usage of the hub cache, in allocated bytes as ``du`` counts them; no link is followed out of it."""

import contextlib
import os
import stat
from collections.abc import Collection, Iterator

import attrs

from mlxk.adapters.huggingface.layout import (
    STAGING,
    ModelFolder,
    linked_blob,
    linked_parts,
    read_tree,
    references_to,
    shared_target,
    snapshots_of,
)
from mlxk.domain.models.disk_usage import ModelUsage, StoredContent, StoredRevision

BLOCK_BYTES = 512
"""Unit of ``st_blocks``."""
PARTIAL_ENDING = ".incomplete"


@attrs.define
class _Content:
    """A stored content, during collection."""

    name: str
    size_bytes: int
    revisions: set[str] = attrs.field(factory=set)
    partial: bool = False


def measure(folder: ModelFolder, current: str | None) -> ModelUsage | None:
    """Return the disk usage of a model; None if it is not cached.

    Args:
        folder: The model.
        current: The revision that the model's name means without one.

    Raises:
        OSError: A directory cannot be read.
    """
    if os.path.islink(folder.directory):
        target = os.path.normpath(os.path.join(folder.root, os.readlink(folder.directory)))
        return ModelUsage(folder.name, (), (), _allocated(os.lstat(folder.directory)), link_to=target)
    if not os.path.isdir(folder.directory):
        return None
    survey = _Survey(folder)
    survey.read()
    revisions = tuple(
        StoredRevision(name, _references(folder, name), name == current, survey.own.get(name, 0))
        for name in sorted(survey.revisions)
    )
    contents = tuple(
        StoredContent(each.name, identity, each.size_bytes, frozenset(each.revisions), each.partial)
        for identity, each in sorted(survey.contents.items(), key=lambda item: item[1].name)
    )
    return ModelUsage(folder.name, revisions, contents, survey.other_bytes, linked_parts=linked_parts(folder))


def measure_remainder(root: str, counted: Collection[str], folders: Collection[str]) -> int:
    """Return the bytes of a cache outside its models, such as lock files, data sets and files of other programs.

    Args:
        root: The ``hub`` directory.
        counted: Identities of the contents that are counted with a model.
        folders: Names of the models' directories.

    Raises:
        OSError: The cache cannot be read.
    """
    seen = set(counted)
    total = _allocated(os.stat(root))
    for name in os.listdir(root):
        path = os.path.join(root, name)
        if name in folders:
            continue
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            for _, status in (("", os.lstat(path)), *_below(path)):
                if _identity(status) not in seen:
                    total += _allocated(status)
                    seen.add(_identity(status))
    return total


class _Survey:
    """One walk through a model's directory."""

    def __init__(self, folder: ModelFolder) -> None:
        self.folder = folder
        self.revisions = frozenset(name for _, name in snapshots_of(folder))
        self.contents: dict[str, _Content] = {}
        self.own: dict[str, int] = {}
        """Bytes of each revision's links, directories and records."""
        self.other_bytes = 0
        self._blobs = os.path.realpath(folder.blobs)
        self._plain: list[str] = []
        """Revisions with files instead of links."""

    def read(self) -> None:
        """Walk through the directory.

        Raises:
            OSError: A directory cannot be read.
        """
        self.other_bytes += _allocated(os.lstat(self.folder.directory))
        used: dict[str, set[str]] = {}
        blobs = f"{self.folder.blobs}/"  # first, so that a staged hard link of one counts as it
        found = sorted(_below(self.folder.directory), key=lambda each: not each[0].startswith(blobs))
        for path, status in found:
            self._add(path[len(self.folder.directory) + 1 :], path, status, used)
        for name, revision in self._recorded():
            used.setdefault(name, set()).add(revision)
        for content in self.contents.values():
            content.revisions |= used.get(content.name, set())

    def _add(self, relative: str, path: str, status: os.stat_result, used: dict[str, set[str]]) -> None:
        part, _, below = relative.partition("/")
        revision = self._revision(part, below)
        if part == "blobs" and below and not stat.S_ISDIR(status.st_mode):
            self._add_blob(below, path, status)
        elif part == STAGING:
            if _identity(status) not in self.contents:
                staged = self.contents.setdefault(STAGING, _Content(STAGING, 0, partial=True))
                staged.size_bytes += _allocated(status)
        elif revision and part == "snapshots" and stat.S_ISREG(status.st_mode):
            content = self.contents.setdefault(_identity(status), _Content(below, _allocated(status)))
            content.revisions.add(revision)
            self._plain.append(revision)
        else:
            self._add_own(revision, _allocated(status))
            blob = linked_blob(path, self._blobs) if revision and stat.S_ISLNK(status.st_mode) else None
            if blob and revision:
                used.setdefault(blob, set()).add(revision)

    def _add_own(self, revision: str | None, size_bytes: int) -> None:
        if revision is None:
            self.other_bytes += size_bytes
        else:
            self.own[revision] = self.own.get(revision, 0) + size_bytes

    def _add_blob(self, name: str, path: str, status: os.stat_result) -> None:
        if stat.S_ISLNK(status.st_mode):
            self.other_bytes += _allocated(status)
            target = shared_target(self.folder, path)
            try:
                status = os.lstat(target) if target else status
            except FileNotFoundError:  # a dangling link
                target = None
            size = _allocated(status) if target else 0
        else:
            size = _allocated(status)
        content = self.contents.setdefault(_identity(status), _Content(name, size))
        content.partial = content.partial or name.endswith(PARTIAL_ENDING)

    def _revision(self, part: str, below: str) -> str | None:
        """Return the revision of a path below a part of the model's directory; None if it has none."""
        name = below.partition("/")[0]
        name = name.removesuffix(".json") if part == "trees" else name
        return name if part in {"snapshots", "trees", ".no_exist"} and name in self.revisions else None

    def _recorded(self) -> Iterator[tuple[str, str]]:
        """Yield blobs and their revisions by the records of snapshots that have files instead of links."""
        for revision in set(self._plain):
            for entry in read_tree(self.folder, revision) or ():
                if entry.digest:
                    yield entry.digest, revision


def _references(folder: ModelFolder, revision: str) -> tuple[str, ...]:
    return tuple(sorted(path[len(folder.references) + 1 :] for path in references_to(folder, revision)))


def _below(directory: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the paths below a directory with their status; links are not followed, missing files are skipped."""
    try:
        status = os.lstat(directory)
        entries = sorted(os.listdir(directory)) if stat.S_ISDIR(status.st_mode) else []
    except FileNotFoundError:
        return
    for name in entries:
        path = f"{directory}/{name}"
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            continue
        yield path, status
        if stat.S_ISDIR(status.st_mode):
            yield from _below(path)


def _allocated(status: os.stat_result) -> int:
    return status.st_blocks * BLOCK_BYTES


def _identity(status: os.stat_result) -> str:
    return f"{status.st_dev}:{status.st_ino}"
