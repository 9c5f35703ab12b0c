"""Measure what cached models take on the disk, and what of it nothing uses."""

from collections import Counter
from collections.abc import Collection, Sequence

import attrs

from mlxk.application.ports.model_cache import ModelCache
from mlxk.domain.models.disk_usage import ModelUsage, Waste, WasteKind, find_waste

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
