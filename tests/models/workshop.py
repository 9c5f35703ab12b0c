"""A scheduler with one model, whose passes can be watched and made to fail, and whose clock stands still."""

from collections.abc import Callable
from typing import Any

import attrs
import mlx.core as mx
from doubles.clock import InMemoryClock
from doubles.event_log import InMemoryEventLog
from models.answers import read

from mlxk.adapters.mlx.engine.admission import AdmissionQueue
from mlxk.adapters.mlx.engine.build_sequence import build_sequence
from mlxk.adapters.mlx.engine.prefiller import EngineCounters
from mlxk.adapters.mlx.engine.prefix_cache import PrefixCache
from mlxk.adapters.mlx.engine.sampling import LogitsProcessor
from mlxk.adapters.mlx.engine.scheduler import Scheduler
from mlxk.adapters.mlx.engine.sequence import Sequence
from mlxk.adapters.mlx.engine.working_memory import WorkingMemory
from mlxk.adapters.mlx.loading.text_model import LoadedModel, PooledModel
from mlxk.adapters.mlx.memory import EngineLimits
from mlxk.adapters.system import SystemClock
from mlxk.application.text_streams import QueuedTextStream
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings


class Network:
    """A model whose every pass can be watched, and made to fail as a device does."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self.passes: list[tuple[int, int]] = []
        self.before: Callable[[mx.array], None] = lambda tokens: None
        self.after: Callable[[mx.array, mx.array], mx.array] = lambda tokens, logits: logits

    def __call__(self, tokens: mx.array, cache: Any) -> mx.array:
        self.passes.append(tuple(tokens.shape))  # type: ignore[arg-type]
        self.before(tokens)
        return self.after(tokens, self._network(tokens, cache=cache))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


class Workshop:
    """A scheduler, a model, and the answers that run.

    Its clock stands still unless a pass moves it: steps and chunks take no time, from which nothing is learned.
    """

    def __init__(
        self,
        model: LoadedModel,
        max_rows: int = 32,
        cache_budget_bytes: int | None = None,
        prefix_bytes: int = 0,
        free_bytes: Callable[[], int | None] = lambda: None,
        swap_used_bytes: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.network = Network(model.network)
        self.model = attrs.evolve(model, network=self.network)
        self.pooled = PooledModel(self.model, 0.0)
        self.released = 0
        self.prefixes = PrefixCache(prefix_bytes)
        self.clock, self.log = InMemoryClock(), InMemoryEventLog()
        limits = EngineLimits(free_bytes=free_bytes, swap_used_bytes=swap_used_bytes)
        self.memory = WorkingMemory(limits, self.prefixes, self.clock, self.log)
        self.scheduler = Scheduler(
            self.log,
            self.clock,
            AdmissionQueue(max_rows, cache_budget_bytes, self.memory),
            self.memory,
            EngineCounters(),
            self._release,
        )

    def start(
        self, prompt: str, constrain: Callable[[Any], tuple[LogitsProcessor, ...]] | None = None, **settings: Any
    ) -> tuple[Sequence, QueuedTextStream]:
        wanted = GenerationSettings(**{"temperature": 0.0, "max_tokens": 20, "ignore_eos": True, **settings})
        stream = QueuedTextStream()
        request = GenerationRequest(self.model.handle, prompt, wanted)
        sequence = build_sequence(request, (self.pooled,), stream, SystemClock())
        sequence.constraints = constrain or sequence.constraints
        self.scheduler.add(sequence)
        stream.on_cancel = lambda: self.scheduler.cancel(sequence)
        return sequence, stream

    def step(self) -> bool:
        return self.scheduler.step(lambda: False)

    def run(self) -> None:
        while self.step():
            pass

    def texts(self, *prompts: str, **settings: Any) -> list[str]:
        streams = [self.start(prompt, **settings)[1] for prompt in prompts]
        self.run()
        return [read(stream).text for stream in streams]

    def _release(self, models: tuple[PooledModel, ...]) -> None:
        self.released += 1
