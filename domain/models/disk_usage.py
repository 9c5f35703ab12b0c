"""What cached models take on the disk, and what of it nothing uses, in bytes.

Sizes are those that the disk has allocated, so that sums are what ``du`` says. Contents that several names lead to are
one content and count once.
"""

import enum
from collections.abc import Collection, Iterable

import attrs


class WasteKind(enum.Enum):
    """Why nothing needs a part of the cache."""

    REVISIONS = "revisions"
    """Revisions that no branch or tag names, and that are not the current one."""
    PARTIAL = "partial"
    """Downloads that were not finished."""
    ORPHANED = "orphaned"
    """Whole files that no revision has."""


@attrs.frozen
class StoredContent:
    """The bytes of one file on the disk."""

    name: str
    """Of the blob, or the path in the snapshot where that holds the file itself."""
    identity: str
    """The same for all names that lead to these bytes, in any model."""
    size_bytes: int
    revisions: frozenset[str] = frozenset()
    """The revisions that have the file."""
    partial: bool = False
    """Whether it belongs to a download that was not finished."""


@attrs.frozen
class StoredRevision:
    """One snapshot of a model."""

    name: str
    references: tuple[str, ...]
    """Branches and tags that point to it, sorted."""
    is_current: bool
    """Whether the name of the model alone means it."""
    own_bytes: int
    """Its directories, links and record, without the contents of files."""

    @property
    def is_old(self) -> bool:
        """Whether nothing names it."""
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
    """Directories, references and records."""
    link_to: str | None = None
    """Where the model's folder leads when it is a link: nothing there is counted."""
    linked_parts: tuple[str, ...] = ()
    """Parts of the model's folder that are links to other places, of which nothing is counted; sorted."""

    @property
    def total_bytes(self) -> int:
        """Everything that the model takes."""
        own = sum(revision.own_bytes for revision in self.revisions)
        return self.other_bytes + own + sum(content.size_bytes for content in self.contents)

    @property
    def identities(self) -> frozenset[str]:
        """The contents of the model."""
        return frozenset(content.identity for content in self.contents)

    @property
    def partial(self) -> tuple[StoredContent, ...]:
        """What is left of downloads that were not finished."""
        return tuple(content for content in self.contents if content.partial)

    @property
    def orphaned(self) -> tuple[StoredContent, ...]:
        """Whole files that no revision has."""
        return tuple(content for content in self.contents if not content.partial and not content.revisions)

    def shared_bytes(self, elsewhere: Collection[str]) -> int:
        """Return the bytes that other models have as well.

        Args:
            elsewhere: The contents of other models.
        """
        return size_of(content for content in self.contents if content.identity in elsewhere)

    def unique_to(self, revision: str) -> int:
        """Return the bytes that only one revision has, its own included."""
        own = sum(each.own_bytes for each in self.revisions if each.name == revision)
        return own + size_of(content for content in self.contents if content.revisions == {revision})

    def shared_by(self, revision: str) -> int:
        """Return the bytes of a revision that other revisions have as well."""
        return size_of(each for each in self.contents if revision in each.revisions and len(each.revisions) > 1)


@attrs.frozen
class Waste:
    """What can go of one model."""

    name: str
    """``org/name``."""
    revisions: tuple[str, ...] = ()
    """Old ones."""
    partial: tuple[str, ...] = ()
    """Names of contents."""
    orphaned: tuple[str, ...] = ()
    """Names of contents."""
    whole: bool = False
    """Whether the model has no revision at all, so that nothing of it stays."""
    size_bytes: int = 0
    """What the disk gets back."""

    def within(self, shown: "Waste") -> "Waste":
        """Return what is part of another waste as well; the size is left as it is."""
        return attrs.evolve(
            self,
            revisions=tuple(each for each in self.revisions if each in shown.revisions),
            partial=tuple(each for each in self.partial if each in shown.partial),
            orphaned=tuple(each for each in self.orphaned if each in shown.orphaned),
            whole=self.whole and shown.whole,
        )


def find_waste(usage: ModelUsage, kinds: Collection[WasteKind], elsewhere: Collection[str] = ()) -> Waste | None:
    """Return what can go of a model; None when that is nothing. What links lead to is never part of it.

    Args:
        usage: The model.
        kinds: What to look for.
        elsewhere: Contents of other models, whose bytes are not freed.
    """
    if usage.link_to is not None or usage.linked_parts:
        return None
    partial = usage.partial if WasteKind.PARTIAL in kinds else ()
    orphaned = usage.orphaned if WasteKind.ORPHANED in kinds else ()
    old = [each for each in usage.revisions if each.is_old] if WasteKind.REVISIONS in kinds else []
    names = frozenset(each.name for each in old)
    going = [each for each in usage.contents if each.revisions and each.revisions <= names]
    whole = not usage.revisions and WasteKind.PARTIAL in kinds and len(partial + orphaned) == len(usage.contents)
    if not (partial or orphaned or old or whole):
        return None
    freed = size_of(each for each in (*partial, *orphaned, *going) if each.identity not in elsewhere)
    return Waste(
        usage.name,
        tuple(sorted(names)),
        tuple(content.name for content in partial),
        tuple(content.name for content in orphaned),
        whole,
        freed + sum(each.own_bytes for each in old) + (usage.other_bytes if whole else 0),
    )


def size_of(contents: Iterable[StoredContent]) -> int:
    """Return the bytes of some contents."""
    return sum(content.size_bytes for content in contents)
