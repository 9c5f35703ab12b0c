"""Builds the use cases that look after the cache and search the hub, each imported when it is asked for."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlxk.application.ports.memory_probe import MemoryProbe
    from mlxk.application.ports.model_cache import ModelCache
    from mlxk.application.ports.model_hub import ModelHub
    from mlxk.application.use_cases.find_outdated import FindOutdated
    from mlxk.application.use_cases.measure_cache import MeasureCache
    from mlxk.application.use_cases.prune_cache import PruneCache
    from mlxk.application.use_cases.search_models import SearchModels
    from mlxk.application.use_cases.show_remote_model import ShowRemoteModel


def measure_cache(cache: "ModelCache") -> "MeasureCache":
    """Return the use case that measures the cache."""
    from mlxk.application.use_cases.measure_cache import MeasureCache

    return MeasureCache(cache)


def prune_cache(cache: "ModelCache") -> "PruneCache":
    """Return the use case that removes waste."""
    from mlxk.application.use_cases.prune_cache import PruneCache

    return PruneCache(cache, measure_cache(cache))


def search_models(hub: "ModelHub", memory: "MemoryProbe") -> "SearchModels":
    """Return the use case that searches the hub."""
    from mlxk.application.use_cases.search_models import SearchModels

    return SearchModels(hub, memory)


def find_outdated(cache: "ModelCache", hub: "ModelHub") -> "FindOutdated":
    """Return the use case that compares cached models with the hub."""
    from mlxk.application.use_cases.find_outdated import FindOutdated

    return FindOutdated(cache, hub)


def show_remote_model(cache: "ModelCache", hub: "ModelHub", memory: "MemoryProbe", owner: str) -> "ShowRemoteModel":
    """Return the use case that describes a model on the hub."""
    from mlxk.application.use_cases.show_remote_model import ShowRemoteModel

    return ShowRemoteModel(cache, hub, memory, owner)
