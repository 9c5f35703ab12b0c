"""Load a model without generating, or change how long a loaded one stays in memory."""

import attrs

from mlxk.application.policy import require_memory
from mlxk.application.ports.system import EventLog, MemoryProbe
from mlxk.application.ports.text_generator import TextGenerator
from mlxk.application.use_cases.generate_text import STATE_SECONDS
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.models.model import ModelDescription


@attrs.frozen
class LoadModel:
    """Loads text models."""

    generator: TextGenerator
    memory: MemoryProbe
    log: EventLog

    def __call__(
        self, model: ModelDescription, keep_alive_seconds: float | None = None, *, strict_memory: bool = False
    ) -> None:
        """Load a model and return once it is in memory.

        Args:
            model: A model that the caller has resolved and judged.
            keep_alive_seconds: Idle time after which it is unloaded; 0 unloads it at once, infinity never does, None
                leaves what holds for it.
            strict_memory: Whether a model beyond the memory budget is refused; by default it is loaded with a warning.

        Raises:
            InsufficientMemoryError: It is beyond the memory budget and ``strict_memory`` is set.
            MlxkError: See ``TextGenerator.load``.
        """
        warn = None if strict_memory else self.log
        require_memory(model, self.memory, warn, lambda: self.generator.state(STATE_SECONDS).models)
        request = GenerationRequest(model.handle, "", keep_alive_seconds=keep_alive_seconds)
        self.generator.load(request.routed(model.runtime.backends))
