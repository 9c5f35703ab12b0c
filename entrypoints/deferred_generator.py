"""A text generator that builds the engine when it is first used."""

import threading
from collections.abc import Callable

from mlxk.application.ports.text_generator import EngineState, TextGenerator, TextStream
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.models.model import ModelHandle


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
