"""Keep the cache small: measure the disk usage of its models, and prune unused files."""

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
    """The disk usage of one model, compared with the other models of the cache."""

    usage: ModelUsage
    shared_bytes: int
    """Bytes of contents that other models have as well."""
    waste: Waste | None
    """The part that can be pruned; None when there is none."""

    @property
    def unique_bytes(self) -> int:
        """Bytes that only this model has."""
        return self.usage.total_bytes - self.shared_bytes


@attrs.frozen
class CacheUsage:
    """The disk usage of the cache, or of the models that a pattern selects."""

    models: tuple[MeasuredModel, ...]
    """Sorted by name."""
    total_bytes: int
    """Sum over these models and the remainder; contents that several models share count once."""
    remainder_bytes: int | None
    """Bytes that belong to no model; None when a pattern selected the models."""
    shared: frozenset[str] = frozenset()
    """Identities of the contents that several models of the cache have."""

    @property
    def waste_bytes(self) -> int:
        """Bytes freed by pruning all waste."""
        return sum(model.waste.size_bytes for model in self.models if model.waste)


@attrs.frozen
class MeasureCache:
    """Measures the disk usage of the hub cache."""

    cache: ModelCache

    def __call__(self, pattern: str | None = None, kinds: Collection[WasteKind] = EVERY_KIND) -> CacheUsage:
        """Return the disk usage of the selected models.

        Args:
            pattern: A part of the name, case-insensitive; None selects all models.
            kinds: The kinds of waste to look for.

        Raises:
            StorageError: The cache cannot be read.
        """
        usages = [usage for usage in map(self.cache.usage, self.cache.names()) if usage]
        counts = Counter(identity for usage in usages for identity in usage.identities)
        shared = frozenset(identity for identity, count in counts.items() if count > 1)
        part = (pattern or "").strip().lower()
        selected = [usage for usage in usages if part in usage.name.lower()]
        measured = tuple(
            MeasuredModel(usage, usage.shared_bytes(shared), find_waste(usage, kinds, shared)) for usage in selected
        )
        remainder = self.cache.remainder_bytes(usages) if pattern is None else None
        return CacheUsage(measured, _total(selected) + (remainder or 0), remainder, shared)


def _total(models: Sequence[ModelUsage]) -> int:
    """Return the bytes of several models; contents that they share count once."""
    sizes = {content.identity: content.size_bytes for model in models for content in model.contents}
    repeated = sum(content.size_bytes for model in models for content in model.contents) - sum(sizes.values())
    return sum(model.total_bytes for model in models) - repeated


class PruneStatus(enum.Enum):
    """How a prune ended."""

    PRUNED = "pruned"
    DRY_RUN = "dry_run"
    CANCELLED = "cancelled"
    NOTHING = "nothing"
    """There was no waste, or all of it is in use."""


@attrs.frozen
class PruneRequest:
    """Selection and options of a prune."""

    pattern: str | None = None
    """A part of the names of models, case-insensitive; None means all models."""
    kinds: Collection[WasteKind] = EVERY_KIND
    dry_run: bool = False
    """Whether to report only."""


@attrs.frozen
class SparedModel:
    """A model whose waste is not removed."""

    name: str
    reason: str
    """A clause, such as ``in use by process 12, which is serving it``."""


@attrs.frozen
class PruneResult:
    """Result of a prune, or of a dry run."""

    status: PruneStatus
    waste: tuple[Waste, ...]
    """The waste that was removed, or would be; sorted by name."""
    spared: tuple[SparedModel, ...]
    """Sorted by name."""

    @property
    def freed_bytes(self) -> int:
        """Bytes freed."""
        return sum(each.size_bytes for each in self.waste)


@attrs.frozen
class PruneCache:
    """Removes waste, except of models that another process downloads, changes or has in memory."""

    cache: ModelCache
    measure: MeasureCache

    def __call__(self, request: PruneRequest, confirmation: Confirmation) -> PruneResult:
        """Show the waste, ask for confirmation, and remove it.

        Raises:
            ModelNotFoundError: No cached model matches the pattern.
            RequiresConfirmationError: There is no terminal for the confirmation.
            StorageError: The cache cannot be read, or a file cannot be deleted.
        """
        measured = self.measure(request.pattern, request.kinds)
        planned, spared = self._plan(request, measured)
        if not planned or request.dry_run:
            return PruneResult(PruneStatus.DRY_RUN if planned else PruneStatus.NOTHING, planned, spared)
        if not _confirmed(planned, spared, confirmation):
            return PruneResult(PruneStatus.CANCELLED, planned, spared)
        removed = []
        for shown in planned:
            try:
                waste = self._remove(shown, request.kinds, measured.shared)
            except LocksPresentError as error:
                spared += (SparedModel(shown.name, error.message.removeprefix(f"'{shown.name}' is ")),)
            else:
                removed += [waste] if waste else []
        spared = tuple(sorted(spared, key=lambda each: each.name))
        return PruneResult(PruneStatus.PRUNED if removed else PruneStatus.NOTHING, tuple(removed), spared)

    def _plan(self, request: PruneRequest, measured: CacheUsage) -> tuple[tuple[Waste, ...], tuple[SparedModel, ...]]:
        """Return the waste to remove, and the models whose waste cannot be removed."""
        if request.pattern is not None and not measured.models:
            raise ModelNotFoundError(
                f"no cached model has '{request.pattern}' in its name", hint=Advice(Remedy.LIST_ALL)
            )
        planned, spared = [], []
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
                    planned.append(model.waste)
        return tuple(planned), tuple(spared)

    def _holders(self, name: str) -> tuple[LockHolder, ...]:
        return (*self.cache.holders(name), *self.cache.users(name))

    def _remove(self, shown: Waste, kinds: Collection[WasteKind], shared: Collection[str]) -> Waste | None:
        """Remove the part of the shown waste that is still waste, and return that part.

        Raises:
            LocksPresentError: Another process uses the model by now.
        """
        with self.cache.reserve(shown.name, "pruning it"):
            holders = self._holders(shown.name)
            if holders:
                raise in_use(shown.name, holders)
            usage = self.cache.usage(shown.name)
            current = find_waste(usage, kinds, shared) if usage else None
            waste = current.within(shown) if current else None
            if waste:
                self.cache.prune(waste)
            return waste


def waste_lines(waste: Waste) -> tuple[str, ...]:
    """Return a line for each part of a model's waste."""
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


def _confirmed(planned: tuple[Waste, ...], spared: tuple[SparedModel, ...], confirmation: Confirmation) -> bool:
    lines = tuple(f"  {line}" for waste in planned for line in waste_lines(waste))
    spared_lines = tuple(f"  {each.name} stays: {each.reason}" for each in spared)
    (size,) = in_one_unit(sum(waste.size_bytes for waste in planned))
    answer = confirmation.ask(("Nothing uses:", *lines, *spared_lines), f"Remove this ({size})?", default=False)
    if answer is None:
        raise RequiresConfirmationError(
            "there is no terminal to ask whether to remove what nothing uses",
            hint=Advice(Remedy.CONFIRM_PRUNING),
            matches=tuple(line.strip() for line in lines),
        )
    return answer
