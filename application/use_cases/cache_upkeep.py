"""Keep the cache small: measure what its models take, and prune what nothing uses."""

import enum
from collections import Counter
from collections.abc import Collection, Sequence

import attrs

from mlxk.application.ports.model_cache import LockHolder, ModelCache, in_use, used_by
from mlxk.application.ports.system import Confirmation
from mlxk.domain.errors import (
    Advice,
    LocksPresentError,
    ModelNotFoundError,
    Remedy,
    RequiresConfirmationError,
)
from mlxk.domain.models.disk_usage import ModelUsage, Waste, WasteKind, find_waste
from mlxk.domain.text import in_one_unit

EVERY_KIND = frozenset(WasteKind)


@attrs.frozen
class MeasuredModel:
    """One model, among all others of the cache."""

    usage: ModelUsage
    shared_bytes: int
    """Bytes of contents that other models have as well."""
    waste: Waste | None
    """What can go."""

    @property
    def unique_bytes(self) -> int:
        """Bytes that only this model has."""
        return self.usage.total_bytes - self.shared_bytes


@attrs.frozen
class CacheUsage:
    """The cache, or the models that a pattern selects."""

    models: tuple[MeasuredModel, ...]
    """Sorted by name."""
    total_bytes: int
    """Of these models, and of the remainder where it is measured; contents of several models count once."""
    remainder_bytes: int | None
    """What belongs to no model; None where a pattern selected some models."""
    shared: frozenset[str] = frozenset()
    """The contents that several models of the cache have."""

    @property
    def waste_bytes(self) -> int:
        """What the disk gets back when all waste goes."""
        return sum(model.waste.size_bytes for model in self.models if model.waste)


@attrs.frozen
class MeasureCache:
    """Measures the cache of models from the hub."""

    cache: ModelCache

    def __call__(self, pattern: str | None = None, kinds: Collection[WasteKind] = EVERY_KIND) -> CacheUsage:
        """Return what the models take whose names have a part.

        Args:
            pattern: A part of the name in any case; None selects everything.
            kinds: What counts as waste.

        Raises:
            StorageError: The cache cannot be read.
        """
        found = [usage for usage in map(self.cache.usage, self.cache.names()) if usage]
        holders = Counter(identity for usage in found for identity in usage.identities)
        shared = frozenset(identity for identity, count in holders.items() if count > 1)
        part = (pattern or "").strip().lower()
        chosen = [usage for usage in found if part in usage.name.lower()]
        measured = tuple(
            MeasuredModel(usage, usage.shared_bytes(shared), find_waste(usage, kinds, shared)) for usage in chosen
        )
        remainder = self.cache.remainder_bytes(found) if pattern is None else None
        return CacheUsage(measured, _total(chosen) + (remainder or 0), remainder, shared)


def _total(models: Sequence[ModelUsage]) -> int:
    """Return the bytes of models; contents that several have count once."""
    sizes = {content.identity: content.size_bytes for model in models for content in model.contents}
    repeated = sum(content.size_bytes for model in models for content in model.contents) - sum(sizes.values())
    return sum(model.total_bytes for model in models) - repeated


class PruneStatus(enum.Enum):
    """What became of the waste."""

    PRUNED = "pruned"
    DRY_RUN = "dry_run"
    CANCELLED = "cancelled"
    NOTHING = "nothing"
    """There was none, or processes use all of it."""


@attrs.frozen
class PruneRequest:
    """What to remove."""

    pattern: str | None = None
    """A part of the names of models, in any case; None means all."""
    kinds: Collection[WasteKind] = EVERY_KIND
    dry_run: bool = False
    """Whether to report only."""


@attrs.frozen
class SparedModel:
    """A model whose waste stays."""

    name: str
    reason: str
    """A clause, such as ``in use by process 12, which is serving it``."""


@attrs.frozen
class PruneResult:
    """What went, or would."""

    status: PruneStatus
    waste: tuple[Waste, ...]
    """Sorted by name; what was removed, or would be."""
    spared: tuple[SparedModel, ...]
    """Sorted by name."""

    @property
    def freed_bytes(self) -> int:
        """What the disk gets back."""
        return sum(each.size_bytes for each in self.waste)


@attrs.frozen
class PruneCache:
    """Removes waste; a model that another process downloads, works on or has in memory is left alone."""

    cache: ModelCache
    measure: MeasureCache

    def __call__(self, request: PruneRequest, confirmation: Confirmation) -> PruneResult:
        """Show the waste, ask, and remove it.

        Raises:
            ModelNotFoundError: No cached model fits the pattern.
            RequiresConfirmationError: There is no terminal for the question.
            StorageError: The cache cannot be read, or a file not deleted.
        """
        measured = self.measure(request.pattern, request.kinds)
        found, spared = self._survey(request, measured)
        if not found or request.dry_run:
            return PruneResult(PruneStatus.DRY_RUN if found else PruneStatus.NOTHING, found, spared)
        if not _confirmed(found, spared, confirmation):
            return PruneResult(PruneStatus.CANCELLED, found, spared)
        removed = []
        for shown in found:
            try:
                gone = self._remove(shown, request.kinds, measured.shared)
            except LocksPresentError as error:
                spared += (SparedModel(shown.name, error.message.removeprefix(f"'{shown.name}' is ")),)
            else:
                removed += [gone] if gone else []
        spared = tuple(sorted(spared, key=lambda each: each.name))
        return PruneResult(PruneStatus.PRUNED if removed else PruneStatus.NOTHING, tuple(removed), spared)

    def _survey(self, request: PruneRequest, measured: CacheUsage) -> tuple[tuple[Waste, ...], tuple[SparedModel, ...]]:
        if request.pattern is not None and not measured.models:
            raise ModelNotFoundError(
                f"no cached model has '{request.pattern}' in its name", hint=Advice(Remedy.LIST_ALL)
            )
        found, spared = [], []
        for model in measured.models:
            usage = model.usage
            if usage.link_to is not None or usage.linked_parts:
                parts = "" if usage.link_to is not None else f" ({', '.join(usage.linked_parts)})"
                spared.append(SparedModel(usage.name, f"a link to another place{parts}"))
            elif model.waste:
                holders = self._holders(usage.name)
                if holders:
                    spared.append(SparedModel(usage.name, used_by(holders)))
                else:
                    found.append(model.waste)
        return tuple(found), tuple(spared)

    def _holders(self, name: str) -> tuple[LockHolder, ...]:
        return (*self.cache.holders(name), *self.cache.users(name))

    def _remove(self, shown: Waste, kinds: Collection[WasteKind], shared: Collection[str]) -> Waste | None:
        """Remove what was shown and is still waste, and return it.

        Raises:
            LocksPresentError: Another process uses the model by now.
        """
        with self.cache.reserve(shown.name, "pruning it"):
            holders = self._holders(shown.name)
            if holders:
                raise in_use(shown.name, holders)
            usage = self.cache.usage(shown.name)
            now = find_waste(usage, kinds, shared) if usage else None
            waste = now.within(shown) if now else None
            if waste:
                self.cache.prune(waste)
            return waste


def waste_lines(waste: Waste) -> tuple[str, ...]:
    """Return what goes of a model, a line each kind."""
    lines = [f"{waste.name}@{revision[:12]}: old revision" for revision in waste.revisions]
    if waste.whole:
        return (f"{waste.name}: a download that was not finished, entirely",)
    if waste.partial:
        lines.append(f"{waste.name}: {_counted(len(waste.partial), 'partial download')}")
    if waste.orphaned:
        lines.append(f"{waste.name}: {_counted(len(waste.orphaned), 'file')} that no revision has")
    return tuple(lines)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _confirmed(found: tuple[Waste, ...], spared: tuple[SparedModel, ...], confirmation: Confirmation) -> bool:
    lines = tuple(f"  {line}" for waste in found for line in waste_lines(waste))
    kept = tuple(f"  {each.name} stays: {each.reason}" for each in spared)
    (size,) = in_one_unit(sum(waste.size_bytes for waste in found))
    answer = confirmation.ask(("Nothing uses:", *lines, *kept), f"Remove this ({size})?", default=False)
    if answer is None:
        raise RequiresConfirmationError(
            "there is no terminal to ask whether to remove what nothing uses",
            hint=Advice(Remedy.CONFIRM_PRUNING),
            matches=tuple(line.strip() for line in lines),
        )
    return answer
