"""One answer on its way through the engine: what it runs on, and where it stands."""

import attrs

from mlxk.adapters.mlx.engine.answer import Answer
from mlxk.adapters.mlx.engine.batch import Batch, DecodeBatch, Row
from mlxk.adapters.mlx.engine.kv_cache import cache_kind
from mlxk.adapters.mlx.engine.model_pool import PooledModel
from mlxk.adapters.mlx.engine.prefill import Media, Prefill
from mlxk.adapters.mlx.engine.speculative import SpeculativeBatch
from mlxk.domain.generation.engine_options import EngineOptions


@attrs.define(eq=False)
class Job:
    """One answer to compute."""

    row: Row
    residents: tuple[PooledModel, ...]
    """The model, leased, and the draft model when there is one."""
    engine_options: EngineOptions = attrs.field(factory=EngineOptions)
    alone: bool = False
    """Whether it decodes in a batch of its own."""
    media: Media | None = None
    """What the prompt shows, for models that look at images."""
    prefill: Prefill | None = None
    """While its prompt is computed."""
    batch: Batch | None = None
    """While it decodes."""

    def release_arrays(self) -> None:
        """Drop everything of MLX: readers hold on to an ended job, and must not keep a model in memory."""
        self.residents, self.media, self.prefill, self.batch = (), None, None, None
        self.row.processors, self.row.context, self.row.constrain, self.row.fault = (), None, None, None

    @property
    def must_be_alone(self) -> bool:
        """Whether it cannot decode together with others; known once its prompt is computed."""
        if self.alone or not self.engine_options.batchable or self.prefill is None:
            return True
        return not all(hasattr(layer, "merge") for layer in self.prefill.cache)

    @property
    def why_alone(self) -> list[str]:
        """What to tell its reader about decoding alone, unless the request itself asked for what needs it."""
        if self.alone or not self.engine_options.batchable:
            return []
        return ["Computed outside the common batch because this model's cache cannot be shared."]

    def own_batch(self) -> Batch:
        """Return a batch for this answer by itself; its prompt must be computed."""
        network = self.resident.model.network
        draft = self.prefill.draft if self.prefill is not None else None
        if draft is None:
            return DecodeBatch(network, alone=True)
        return SpeculativeBatch(network, draft.network, draft.cache, self.engine_options.draft_tokens)

    @property
    def answer(self) -> Answer:
        """The answer."""
        return self.row.answer

    @property
    def resident(self) -> PooledModel:
        """The model."""
        return self.residents[0]

    @property
    def identity(self) -> str:
        """Under which its cache may be shared with others."""
        shown = self.media.kind if self.media is not None else ""
        return self.resident.model.identity + cache_kind(self.engine_options) + shown

    @property
    def tokens(self) -> list[int]:
        """Everything the model is to read before it goes on: the prompt and what it said already."""
        return [*self.answer.prompt, *self.answer.generated]

    @property
    def tokens_left(self) -> int:
        """Prompt tokens still to compute; a guess before it has begun."""
        if self.prefill is not None:
            return self.prefill.remaining
        return len(self.answer.prompt) + len(self.answer.generated) - 1
