"""What other processes of this program ask of a server: to unload a model, or to compute on its engine."""

import contextlib
import os
import threading
from collections.abc import Callable, Sequence

from mlxk.application.ports.model_cache import ModelCache
from mlxk.application.ports.text_generator import TextGenerator
from mlxk.domain.errors import MlxkError
from mlxk.domain.generation.request import Finished
from mlxk.domain.models.model import ModelHandle, served_id
from mlxk.entrypoints.adapter_container import socket_listener
from mlxk.entrypoints.container import Container
from mlxk.entrypoints.http.lifecycle import COMMANDS, Metrics

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


class _CommandCounts:
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def answers(self, model: ModelHandle, finished: Sequence[Finished], failure: str | None) -> None:
        self._metrics.answers(served_id(model), COMMANDS, finished, failure)

    def embeddings(self, model: ModelHandle, tokens: int, seconds: float) -> None:
        self._metrics.embeddings(served_id(model), COMMANDS, tokens, seconds)


class OtherProcesses:
    """Serves the other processes until it is stopped.

    Args:
        container: The engine and the cache.
        admit: Admits a request; returns what releases its slot.
        metrics: Counts what is computed for them.
        url: The server's address for clients.
        owner: The process that a signal stops: the supervisor; None for this one.
    """

    def __init__(
        self,
        container: Container,
        admit: Callable[[], Callable[[], None]],
        metrics: Metrics,
        url: str,
        owner: int | None,
    ) -> None:
        self._watch = ReturnWatch(container.adapters.model_cache(), container.adapters.text_generator())
        self._listener = socket_listener(container.adapters, url, admit, _CommandCounts(metrics), owner or os.getpid())

    def start(self) -> None:
        """Serve from now on."""
        self._watch.start()
        self._listener.start()

    def stop(self, deadline: Callable[[], float]) -> None:
        """End; requests in progress may end first.

        Args:
            deadline: Returns until when, seconds of the monotonic clock.
        """
        self._watch.stop()
        self._listener.close(deadline)
