"""Unloading the models that another process of this program asks for, such as one that removes a model."""

import contextlib
import threading

from mlxk.application.ports.model_cache import ModelCache
from mlxk.application.ports.text_generator import TextGenerator
from mlxk.domain.errors import MlxkError

_LOOK_SECONDS = 0.5


class ReturnWatch(threading.Thread):
    """Looks for such requests until it is stopped; a model that is answering is unloaded by a later look.

    Args:
        cache: Knows what is asked for.
        generator: Unloads it.
    """

    def __init__(self, cache: ModelCache, generator: TextGenerator) -> None:
        super().__init__(name="mlxk-return-watch", daemon=True)
        self._cache = cache
        self._generator = generator
        self._stopped = threading.Event()

    def run(self) -> None:
        """Look, and wait."""
        while not self._stopped.wait(_LOOK_SECONDS):
            for model in self._cache.asked_back():
                with contextlib.suppress(MlxkError):  # the engine was closed
                    self._generator.unload(model)

    def stop(self) -> None:
        """End at the next look."""
        self._stopped.set()
