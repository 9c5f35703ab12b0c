"""Serves other processes of this program: unloads models at their request, and computes for them on the engine."""

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

_POLL_SECONDS = 0.5


class _UnloadPoller(threading.Thread):
    """Polls the cache for models that other processes ask to unload; one that is answering goes at a later poll.

    Args:
        cache: Lists the requested models.
        generator: Unloads them.
    """

    def __init__(self, cache: ModelCache, generator: TextGenerator) -> None:
        super().__init__(name="mlxk-return-watch", daemon=True)
        self._cache = cache
        self._generator = generator
        self._stopped = threading.Event()

    def run(self) -> None:
        """Poll until ``stop``."""
        while not self._stopped.wait(_POLL_SECONDS):
            for model in self._cache.asked_back():
                with contextlib.suppress(MlxkError):  # the engine is closed
                    self._generator.unload(model)

    def stop(self) -> None:
        """End before the next poll."""
        self._stopped.set()


class _CommandCounts:
    """Counts in the metrics what is computed for commands."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def answers(self, model: ModelHandle, finished: Sequence[Finished], failure: str | None) -> None:
        self._metrics.answers(served_id(model), COMMANDS, finished, failure)

    def embeddings(self, model: ModelHandle, tokens: int, seconds: float) -> None:
        self._metrics.embeddings(served_id(model), COMMANDS, tokens, seconds)


class OtherProcesses:
    """Serves the other processes until it is stopped.

    Args:
        container: Provides the engine and the cache.
        admit: Admits a request; returns the function that releases its slot.
        metrics: Count the requests.
        url: The server's address for clients.
        owner: Id of the process to signal to stop the server: the supervisor; None for this process.
    """

    def __init__(
        self,
        container: Container,
        admit: Callable[[], Callable[[], None]],
        metrics: Metrics,
        url: str,
        owner: int | None,
    ) -> None:
        self._watch = _UnloadPoller(container.adapters.model_cache(), container.adapters.text_generator())
        self._listener = socket_listener(container.adapters, url, admit, _CommandCounts(metrics), owner or os.getpid())

    def start(self) -> None:
        """Start serving."""
        self._watch.start()
        self._listener.start()

    def stop(self, deadline: Callable[[], float]) -> None:
        """Stop serving, and wait for requests in progress.

        Args:
            deadline: Returns until when to wait, on the monotonic clock; it may change meanwhile.
        """
        self._watch.stop()
        self._listener.close(deadline)
