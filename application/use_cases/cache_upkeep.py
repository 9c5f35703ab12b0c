"""Keep the cache small: measure what its models take, prune what nothing uses, and remove models."""

import enum
import shlex
from collections import Counter
from collections.abc import Collection, Sequence

import attrs

from mlxk.application.ports.model_cache import LockHolder, ModelCache, Removal, in_use, used_by
from mlxk.application.ports.system import Confirmation, Progress
from mlxk.application.use_cases.resolve_model import ResolveModel, close_names
from mlxk.domain.errors import (
    Advice,
    LocksPresentError,
    ModelNotFoundError,
    Remedy,
    RequiresConfirmationError,
    RevisionNotFoundError,
    ValidationError,
    WorkspaceModelError,
)
from mlxk.domain.models.footprint import ModelUsage, Waste, WasteKind, find_waste
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.domain.models.reference import ModelRef, fits_pattern, is_pattern
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


UNLOAD_SECONDS = 30.0
"""How long to wait for servers to unload a model; longer than short answers take."""


@attrs.frozen
class RemoveRequest:
    """Reference and options of a removal."""

    reference: str
    """A name, a part of one, a name with ``@revision``, or a pattern with ``*``, ``?`` or ``[…]``."""
    force: bool = False
    """Whether to remove inexact matches without confirmation, and to have servers unload the models first."""
    dry_run: bool = False
    """Whether to report only."""


@attrs.frozen
class RemoveResult:
    """Result of a removal, or of a dry run."""

    reference: str
    removals: tuple[Removal, ...]
    """Sorted by name."""
    done: bool
    """Whether the models were removed; False after a dry run or a declined confirmation."""
    dry_run: bool = False


@attrs.frozen
class RemoveModel:
    """Removes models from the cache only."""

    cache: ModelCache
    resolve: ResolveModel

    def __call__(self, request: RemoveRequest, confirmation: Confirmation, progress: Progress) -> RemoveResult:
        """Remove the models that match a reference.

        An exact name needs no confirmation, anything else does, or ``force``. A model that another process works on is
        never removed; one that a server has in memory is, with ``force``, when the server has unloaded it.

        Raises:
            ValidationError: The reference cannot be parsed.
            ModelNotFoundError, AmbiguousModelError, RevisionNotFoundError: No single cached model matches.
            WorkspaceModelError: The reference is a workspace or a built-in model.
            RequiresConfirmationError: The reference is not exact, and there is no terminal for a confirmation.
            LocksPresentError: Another process works on the model, or a server answers requests with it.
            StorageError: The disk refuses.
        """
        reference = request.reference.strip()
        pattern = is_pattern(reference)
        ref = ModelRef.parse(reference)
        removals = self._matching(ref) if pattern else (self._single(ref),)
        result = RemoveResult(reference, removals, done=False, dry_run=request.dry_run)
        if request.dry_run:
            return result
        exact = not pattern and removals[0].name == ref.name
        if not exact and not request.force and not self._confirmed(reference, removals, confirmation):
            return result
        for removal in removals:
            self._require_unused(removal.name, or_unloaded=request.force)
        for removal in removals:
            self._remove(removal, progress if request.force else None)
        return attrs.evolve(result, done=True)

    def _single(self, ref: ModelRef) -> Removal:
        handle = self._cached(ref)
        revision = handle.revision if ref.revision is not None else None
        removal = self.cache.plan_removal(handle.name, revision)
        if removal is None:
            raise ModelNotFoundError(f"no cached model found matching '{ref}'")
        return removal

    def _cached(self, ref: ModelRef) -> ModelHandle:
        """Find a cached model; its exact name has precedence over a workspace or built-in model of the same name."""
        handle = self._find(ref)
        if handle.origin is Origin.CACHE:
            return handle
        if handle.origin is Origin.BUILT_IN:
            raise WorkspaceModelError(f"'{handle.name}' comes with the program and cannot be removed")
        shown = ref.text.strip() if ref.is_path else shlex.quote(handle.directory)
        raise WorkspaceModelError(
            f"'{ref}' is a workspace, and workspaces are not removed by mlxk",
            hint=f"Remove the directory: rm -r {shown}",
        )

    def _find(self, ref: ModelRef) -> ModelHandle:
        """Resolve a reference; errors do not suggest a pull, which makes no sense before a removal."""
        try:
            exact = None if ref.is_path else self.cache.find(ref.name, ref.revision)
            return exact or self.resolve(ref)
        except ModelNotFoundError as error:
            close = " or ".join(close_names(ref.name, self.cache.names()))
            hint = Advice(Remedy.USE_CLOSE_NAME, {"close": close}) if close else Advice(Remedy.LIST_ALL)
            raise ModelNotFoundError(error.message, hint=hint) from error
        except RevisionNotFoundError as error:
            raise RevisionNotFoundError(error.message, matches=error.matches) from error

    def _matching(self, ref: ModelRef) -> tuple[Removal, ...]:
        if ref.is_path or ref.revision is not None:
            raise ValidationError(f"a pattern selects cached models by name only: '{ref.text.strip()}'")
        pattern = ref.name
        names = [name for name in self.cache.names() if fits_pattern(name, pattern)]
        removals = tuple(removal for removal in map(self.cache.plan_removal, names) if removal)
        if not removals:
            raise ModelNotFoundError(f"no cached model fits the pattern '{ref.name}'", hint=Advice(Remedy.LIST_ALL))
        return removals

    def _confirmed(self, reference: str, removals: tuple[Removal, ...], confirmation: Confirmation) -> bool:
        facts = tuple(f"  {removal.label}" for removal in removals)
        what = "this model" if len(removals) == 1 else f"these {len(removals)} models"
        answer = confirmation.ask((f"'{reference}' means:", *facts), f"Remove {what}?", default=False)
        if answer is None:
            raise RequiresConfirmationError(
                f"'{reference}' is not an exact name; it means {what}",
                hint=Advice(Remedy.CONFIRM_REMOVAL),
                matches=tuple(removal.label for removal in removals),
            )
        return answer

    def _remove(self, removal: Removal, unloading: Progress | None) -> None:
        """Remove a model; ``unloading`` gets a note for each server that is asked to unload it, None asks none."""
        with self.cache.reserve(removal.name, "removing it"):
            users = self.cache.users(removal.name)
            if users and unloading is not None:
                for user in users:
                    unloading.note(f"Waiting until '{removal.name}' is unloaded by {user}.")
                self.cache.ask_back(removal.name, UNLOAD_SECONDS)
            self._require_unused(removal.name)
            self.cache.remove(removal)

    def _require_unused(self, name: str, *, or_unloaded: bool = False) -> None:
        """Refuse a model that others work on, or have in memory unless ``or_unloaded``.

        Raises:
            LocksPresentError: There is such a process.
        """
        holders = self.cache.holders(name)
        if holders:
            raise in_use(name, holders)
        users = () if or_unloaded else self.cache.users(name)
        if users:
            raise in_use(name, users, hint=Advice(Remedy.UNLOAD_FIRST))
