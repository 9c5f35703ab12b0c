"""Publishing a folder: which of its files go, and what changes on the hub.

Owns the rules that no ``.hfignore`` can lift: what is only true on this machine is never uploaded.
"""

from collections.abc import Mapping

import attrs

from mlxk.domain.remote_model import RemoteFile
from mlxk.domain.workspace import SENTINEL_NAME

IGNORE_FILE = ".hfignore"
"""Rules of the folder, in the language of ``.gitignore``."""

USUALLY_IGNORED = (
    ".DS_Store", "Thumbs.db", ".hfignore", ".gitignore", "__pycache__/", "*.pyc", ".venv/", "venv/",
    ".ipynb_checkpoints/",
)  # fmt: skip
"""Left out unless the folder's own rules say otherwise."""

NEVER_PUBLISHED = (
    f"{SENTINEL_NAME}*",
    ".hf_cache/",
    ".git/",
    ".cache/huggingface/",
    "*.mlxk-draft/",
    ".mlxk_draft.lock",
)
"""Facts and leftovers of this machine."""

KEPT_ON_THE_HUB = frozenset({".gitattributes"})
"""What the hub itself needs; a push that deletes what the folder lacks spares these."""


@attrs.frozen
class LocalFile:
    """One file of a folder that may be published."""

    path: str
    """Relative to the folder, with ``/`` between parts."""
    size_bytes: int


@attrs.frozen
class FolderScan:
    """What a folder holds, by its rules."""

    files: tuple[LocalFile, ...]
    """To be published, sorted by path."""
    outward_links: tuple[str, ...]
    """Links that lead out of the folder, or nowhere, and that no rule leaves out, sorted."""

    @property
    def size_bytes(self) -> int:
        """The sizes of all files together."""
        return sum(file.size_bytes for file in self.files)


@attrs.frozen
class ContentDigests:
    """What a file hashes to in the two ways the hub knows."""

    sha256: str
    blob_id: str
    """git's sha1 of it as a blob."""


@attrs.frozen
class RemoteState:
    """A repository at one of its branches, as a push finds it."""

    exists: bool = False
    private: bool = False
    branch_exists: bool = False
    commit: str | None = None
    """The head of the branch; of the default branch when that branch does not exist."""
    files: tuple[RemoteFile, ...] = ()
    """At that commit, sorted by path."""


@attrs.frozen
class ChangeSet:
    """What a push changes; every tuple is sorted."""

    added: tuple[str, ...] = ()
    modified: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.modified or self.deleted)

    @property
    def uploads(self) -> tuple[str, ...]:
        """The files whose content goes up, sorted."""
        return tuple(sorted((*self.added, *self.modified)))


def compare(local: Mapping[str, ContentDigests | None], remote: tuple[RemoteFile, ...], *, delete: bool) -> ChangeSet:
    """Return what makes a branch hold what a folder holds.

    Args:
        local: Path to digests; they may be None where the branch has no file of that name.
        remote: The files of the branch.
        delete: Whether files that the folder lacks are deleted.
    """
    there = {file.path: file for file in remote}
    modified = []
    for path, digests in local.items():
        known = there.get(path)
        if known and (digests is None or known.digest != (digests.sha256 if known.sha256 else digests.blob_id)):
            modified.append(path)
    deleted = sorted(there.keys() - local.keys() - KEPT_ON_THE_HUB) if delete else []
    return ChangeSet(tuple(sorted(local.keys() - there.keys())), tuple(sorted(modified)), tuple(deleted))
