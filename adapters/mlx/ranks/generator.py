"""The text generator for a model spread over several ranks: refuses what ranks do not support, ends with a lost rank.

The engine runs in rank 0, with its batching, in-memory prefix cache, cancellation, stop sequences, constraints and log
probabilities.
"""

import math
import threading
import weakref
from collections.abc import Callable
from typing import Any

import attrs

from mlxk.adapters.mlx.engine.model_pool import WantedModel
from mlxk.adapters.mlx.loading.text_model import PooledModel
from mlxk.adapters.mlx.ranks.follower import RankSurroundings
from mlxk.adapters.mlx.ranks.group import LOOK_SECONDS, RankGroup
from mlxk.adapters.mlx.ranks.launch import Launch
from mlxk.adapters.mlx.ranks.share import require_library
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.application.ports.system import EventLog
from mlxk.application.ports.text_generator import EngineState, TextStream
from mlxk.application.text_streams import QueuedTextStream
from mlxk.domain.errors import CapabilityError, MlxkError
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.ranks import adapter_refused


class RankedTextGenerator(MlxTextGenerator):
    """Runs one text model on several ranks.

    Args:
        launch: The started processes of the other ranks.
        surroundings: See ``RankSurroundings``.
        on_loss: Called on any thread when a rank is lost, after the error was put into every stream.
        log: Receives loads, losses and failures.
        further: Further arguments of ``MlxTextGenerator``.
    """

    def __init__(
        self,
        launch: Launch,
        surroundings: RankSurroundings,
        on_loss: Callable[[], None],
        log: EventLog,
        *further: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(log, *further)
        self._on_loss = on_loss
        self._group = RankGroup(
            launch, log, surroundings, self._lost, lambda: self._engine_state(LOOK_SECONDS).responding
        )
        self._streams_lock = threading.Lock()
        self._streams: weakref.WeakSet[QueuedTextStream] = weakref.WeakSet()
        """Running completions; guarded by the lock, since a set must not change while it is iterated."""

    def submit(self, request: GenerationRequest) -> TextStream:
        self._group.require_complete()
        stream = super().submit(_without_unsupported(request))
        if isinstance(stream, QueuedTextStream):
            with self._streams_lock:
                self._streams.add(stream)
        self._group.require_complete()  # the rank may have been lost before ``_lost`` could see the stream
        return stream

    def state(self, timeout_seconds: float) -> EngineState:
        state = super().state(timeout_seconds)
        return state if self._group.loss is None else attrs.evolve(state, responding=False)

    def close(self) -> None:
        super().close()
        self._group.close()

    def _lease(self, request: GenerationRequest) -> tuple[PooledModel, ...]:
        return self._leased(request, (WantedModel(request.model, None, self._group.load, math.inf),))

    def _lost(self, error: MlxkError) -> None:
        # Not on the owner thread, which may be blocked in a computation with the lost rank.
        with self._streams_lock:
            streams = list(self._streams)
        for stream in streams:
            stream.put(error)
        self._on_loss()


def _without_unsupported(request: GenerationRequest) -> GenerationRequest:
    """Return a request without the optional settings that ranks do not support.

    Raises:
        CapabilityError: The request requires something that ranks do not support.
    """
    options = request.engine_options
    if options.adapter is not None:
        raise adapter_refused(options.adapter)
    draft = options.draft_model is not None and options.draft_required
    refused = {
        "draft_model": draft,
        "kv_bits": options.kv_bits is not None and options.cache_required,
        "max_kv_size": options.max_kv_size is not None and options.cache_required,
        "prefix_cache_bits": options.prefix_cache_bits is not None and options.cache_required,
        "images and sound": request.has_images or request.has_audio,
    }
    for name in (name for name, is_required in refused.items() if is_required):
        raise CapabilityError(
            f"{name}: a model that is spread over several processes does without.",
            hint="Leave it out, or run the model in one process.",
        )
    require_library(request.model, request.backends)
    names = ("draft_model", "kv_bits", "kv_scheme", "kv_group_size", "max_kv_size", "prefix_cache_bits")
    unused: dict[str, Any] = dict.fromkeys(names)
    plain = attrs.evolve(options, **unused)
    return attrs.evolve(request, engine_options=plain)
