"""What the container builds only once it is used: the engine, and use cases that few commands need."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from mlxk.application.ports.text_generator import EngineState, TextGenerator, TextStream
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.models.model import ModelHandle

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlxk.application.ports.memory_probe import MemoryProbe
    from mlxk.application.ports.model_cache import ModelCache
    from mlxk.application.ports.model_hub import ModelHub
    from mlxk.application.use_cases.find_outdated import FindOutdated
    from mlxk.application.use_cases.measure_cache import MeasureCache
    from mlxk.application.use_cases.prune_cache import PruneCache
    from mlxk.application.use_cases.recommend_models import RecommendModels
    from mlxk.application.use_cases.search_models import SearchModels
    from mlxk.application.use_cases.show_remote_model import ShowRemoteModel
    from mlxk.domain.recommendation import Recommendations


class DeferredTextGenerator(TextGenerator):
    """Builds the engine with the first request, so that no error about a name or a file waits for the import of MLX."""

    def __init__(self, build: Callable[[], TextGenerator]) -> None:
        self._build = build
        self._lock = threading.Lock()
        self._built: TextGenerator | None = None

    @property
    def engine(self) -> TextGenerator:
        """The engine, built if need be."""
        with self._lock:
            self._built = self._built or self._build()
            return self._built

    def submit(self, request: GenerationRequest) -> TextStream:
        return self.engine.submit(request)

    def load(self, request: GenerationRequest) -> None:
        self.engine.load(request)

    def state(self, timeout_seconds: float) -> EngineState:
        if self._built is None:
            return EngineState(responding=True, running=0, waiting=0, models=())
        return self._built.state(timeout_seconds)

    def unload(self, model: ModelHandle | None = None, *, once_idle: bool = False) -> tuple[ModelHandle, ...]:
        return () if self._built is None else self._built.unload(model, once_idle=once_idle)

    def close(self) -> None:
        if self._built is not None:
            self._built.close()


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


def recommend_models(read: "Callable[[], Recommendations]", memory: "MemoryProbe") -> "RecommendModels":
    """Return the use case that recommends models."""
    from mlxk.application.use_cases.recommend_models import RecommendModels

    return RecommendModels(read(), memory)


def find_outdated(cache: "ModelCache", hub: "ModelHub") -> "FindOutdated":
    """Return the use case that compares cached models with the hub."""
    from mlxk.application.use_cases.find_outdated import FindOutdated

    return FindOutdated(cache, hub)


def show_remote_model(cache: "ModelCache", hub: "ModelHub", memory: "MemoryProbe", owner: str) -> "ShowRemoteModel":
    """Return the use case that describes a model on the hub."""
    from mlxk.application.use_cases.show_remote_model import ShowRemoteModel

    return ShowRemoteModel(cache, hub, memory, owner)
