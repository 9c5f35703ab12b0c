"""The text generator of a model that several ranks compute: what they cannot do is refused, and a loss ends everything.

Batching, the prefix cache in memory, cancellation, stops, constraints and log probabilities are those of the engine,
which runs in rank 0.
"""

import math
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
        launch: The other ranks, started.
        by: The program.
        on_loss: Called when a rank has gone, on any thread, after every stream has got its error.
        log: Receives loads, losses and failures.
        further: What else ``MlxTextGenerator`` gets.
    """

    def __init__(
        self,
        launch: Launch,
        by: RankSurroundings,
        on_loss: Callable[[], None],
        log: EventLog,
        *further: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(log, *further)
        self._on_loss = on_loss
        self._group = RankGroup(launch, log, by, self._lost, lambda: self._engine_state(LOOK_SECONDS).responding)
        self._streams: weakref.WeakSet[QueuedTextStream] = weakref.WeakSet()

    def submit(self, request: GenerationRequest) -> TextStream:
        self._group.require_whole()
        stream = super().submit(_plain(request))
        if isinstance(stream, QueuedTextStream):
            self._streams.add(stream)
        self._group.require_whole()  # the loss may have come before the stream was among those that it ends
        return stream

    def state(self, timeout_seconds: float) -> EngineState:
        found = super().state(timeout_seconds)
        return found if self._group.loss is None else attrs.evolve(found, responding=False)

    def close(self) -> None:
        super().close()
        self._group.close()

    def _lease(self, request: GenerationRequest) -> tuple[PooledModel, ...]:
        return self._leased(request, (WantedModel(request.model, None, self._group.load, math.inf),))

    def _lost(self, error: MlxkError) -> None:
        # The owner thread may wait in a computation with the rank that has gone.
        for stream in list(self._streams):
            stream.put(error)
        self._on_loss()


def _plain(request: GenerationRequest) -> GenerationRequest:
    """Return a request without what is optional and ranks cannot do.

    Raises:
        CapabilityError: It requires what they cannot do.
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
    for name in (name for name, is_asked in refused.items() if is_asked):
        raise CapabilityError(
            f"{name}: a model that is spread over several processes does without.",
            hint="Leave it out, or run the model in one process.",
        )
    require_library(request.model, request.backends)
    names = ("draft_model", "kv_bits", "kv_scheme", "kv_group_size", "max_kv_size", "prefix_cache_bits")
    unused: dict[str, Any] = dict.fromkeys(names)
    plain = attrs.evolve(options, **unused)
    return attrs.evolve(request, engine_options=plain)
