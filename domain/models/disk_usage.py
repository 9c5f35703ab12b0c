"""Disk usage of cached models, and the part of it that nothing uses, in bytes.

Sizes are allocated sizes, so that sums agree with ``du``. A content with several names (hard links, symbolic links)
counts once.
"""

import enum
from collections.abc import Collection, Iterable

import attrs


class WasteKind(enum.Enum):
    """Kinds of unused data in the cache."""

    REVISIONS = "revisions"
    """Revisions without a branch or tag that are not current."""
    PARTIAL = "partial"
    """Unfinished downloads."""
    ORPHANED = "orphaned"
    """Complete files that no revision contains."""


@attrs.frozen
class StoredContent:
    """The content of one file on disk."""

    name: str
    """Name of the blob, or the path in the snapshot if that has the file itself instead of a link."""
    identity: str
    """Identifies the content: equal for all of its names, in any model."""
    size_bytes: int
    revisions: frozenset[str] = frozenset()
    """The revisions that contain the file."""
    partial: bool = False
    """Whether it belongs to an unfinished download."""


@attrs.frozen
class StoredRevision:
    """One snapshot of a model."""

    name: str
    references: tuple[str, ...]
    """Branches and tags that point to it, sorted."""
    is_current: bool
    """Whether the model's name without a revision resolves to it."""
    own_bytes: int
    """Size of its directories, links and record, without the contents of files."""

    @property
    def is_old(self) -> bool:
        """Whether it is unused: not current, and without a branch or tag."""
        return not self.is_current and not self.references


@attrs.frozen
class ModelUsage:
    """One model of the cache."""

    name: str
    """``org/name``."""
    revisions: tuple[StoredRevision, ...]
    """Sorted by name."""
    contents: tuple[StoredContent, ...]
    """Sorted by name, each once."""
    other_bytes: int = 0
    """Size of directories, references and records."""
    link_to: str | None = None
    """Target of the model's folder if it is a link; its files are not counted."""
    linked_parts: tuple[str, ...] = ()
    """Parts of the model's folder that are links to other places, whose content is not counted; sorted."""

    @property
    def total_bytes(self) -> int:
        """Size of the model on disk."""
        own = sum(revision.own_bytes for revision in self.revisions)
        return self.other_bytes + own + sum(content.size_bytes for content in self.contents)

    @property
    def identities(self) -> frozenset[str]:
        """Identities of the model's contents."""
        return frozenset(content.identity for content in self.contents)

    @property
    def partial(self) -> tuple[StoredContent, ...]:
        """Contents of unfinished downloads."""
        return tuple(content for content in self.contents if content.partial)

    @property
    def orphaned(self) -> tuple[StoredContent, ...]:
        """Complete files that no revision contains."""
        return tuple(content for content in self.contents if not content.partial and not content.revisions)

    def shared_bytes(self, elsewhere: Collection[str]) -> int:
        """Return the size of the contents that other models have as well.

        Args:
            elsewhere: Identities of the contents of other models.
        """
        return size_of(content for content in self.contents if content.identity in elsewhere)

    def unique_to(self, revision: str) -> int:
        """Return the size of the contents that only this revision has, its own bytes included."""
        own = sum(stored.own_bytes for stored in self.revisions if stored.name == revision)
        return own + size_of(content for content in self.contents if content.revisions == {revision})

    def shared_by(self, revision: str) -> int:
        """Return the size of the contents that this revision shares with other revisions."""
        return size_of(
            content for content in self.contents if revision in content.revisions and len(content.revisions) > 1
        )


@attrs.frozen
class Waste:
    """The unused data of one model, which can be removed."""

    name: str
    """``org/name``."""
    revisions: tuple[str, ...] = ()
    """Names of old revisions."""
    partial: tuple[str, ...] = ()
    """Names of contents of unfinished downloads."""
    orphaned: tuple[str, ...] = ()
    """Names of contents that no revision contains."""
    whole: bool = False
    """Whether the model has no revision at all, so that its folder is removed."""
    size_bytes: int = 0
    """Disk space that the removal frees."""

    def within(self, other: "Waste") -> "Waste":
        """Return the intersection with another waste; the size is not changed."""
        return attrs.evolve(
            self,
            revisions=tuple(name for name in self.revisions if name in other.revisions),
            partial=tuple(name for name in self.partial if name in other.partial),
            orphaned=tuple(name for name in self.orphaned if name in other.orphaned),
            whole=self.whole and other.whole,
        )


def find_waste(usage: ModelUsage, kinds: Collection[WasteKind], elsewhere: Collection[str] = ()) -> Waste | None:
    """Return the unused data of a model; None without any. A model with linked folders never has any.

    Args:
        usage: The model.
        kinds: The kinds of unused data to find.
        elsewhere: Identities of the contents of other models; removing those frees no space.
    """
    if usage.link_to is not None or usage.linked_parts:
        return None
    partial = usage.partial if WasteKind.PARTIAL in kinds else ()
    orphaned = usage.orphaned if WasteKind.ORPHANED in kinds else ()
    old = [revision for revision in usage.revisions if revision.is_old] if WasteKind.REVISIONS in kinds else []
    names = frozenset(revision.name for revision in old)
    outdated = [content for content in usage.contents if content.revisions and content.revisions <= names]
    whole = not usage.revisions and WasteKind.PARTIAL in kinds and len(partial + orphaned) == len(usage.contents)
    if not (partial or orphaned or old or whole):
        return None
    freed = size_of(content for content in (*partial, *orphaned, *outdated) if content.identity not in elsewhere)
    return Waste(
        usage.name,
        tuple(sorted(names)),
        tuple(content.name for content in partial),
        tuple(content.name for content in orphaned),
        whole,
        freed + sum(revision.own_bytes for revision in old) + (usage.other_bytes if whole else 0),
    )


def size_of(contents: Iterable[StoredContent]) -> int:
    """Return the total size of contents."""
    return sum(content.size_bytes for content in contents)
