"""The text embedder port on mlx-vlm, with batches of texts of similar length."""

import importlib.util

import mlx.core as mx
import numpy as np

from mlxk.adapters.mlx.embedding.encoding import EmbeddingModel, batches, device, padded, pool
from mlxk.adapters.mlx.engine.model_pool import WantedModel
from mlxk.adapters.mlx.text_generator import ModelLease, ModelLeases
from mlxk.application.ports.model_tasks import TextEmbedder
from mlxk.domain.embedding import EmbeddingRequest, Embeddings, TokenIds, Vector, shortened
from mlxk.domain.errors import BackendNotInstalledError, ExecutionError, IncompatibleModelError, ValidationError


class MlxTextEmbedder(TextEmbedder):
    """Runs the embedding models that mlx-vlm supports.

    Args:
        leases: Leases the models.
    """

    def __init__(self, leases: ModelLeases) -> None:
        self._leases = leases

    def embed(self, request: EmbeddingRequest) -> Embeddings:
        request.validate()
        if importlib.util.find_spec("mlx_vlm") is None:
            raise BackendNotInstalledError(
                "Running embedding models needs mlx-vlm.", hint="Install it: pip install mlx-vlm"
            )
        # Not at the top: mlx-vlm may be absent, and takes a second to import.
        from mlxk.adapters.mlx.embedding.loading import load_embedding_model

        with self._leases.lease(WantedModel(request.model, load=load_embedding_model), EmbeddingModel) as lease:
            encoded = lease.model.encoder.encode(request)
            tokens = encoded.tokens
            found: dict[int, Vector] = {}
            for indices in batches(tokens):
                found.update(zip(indices, self._vectors(lease, [tokens[index] for index in indices]), strict=True))
                _require_dimensions(request, len(found[indices[0]]), lease.model.shortenable)
                lease.yield_to_generation()
            computed_by = lease.call(device)
        length = request.settings.dimensions
        vectors = tuple(
            found[index] if length is None else shortened(found[index], length) for index in range(len(tokens))
        )
        return Embeddings(vectors, sum(map(len, tokens)), computed_by, encoded.truncations)

    def _vectors(self, lease: ModelLease[EmbeddingModel], texts: list[TokenIds]) -> list[Vector]:
        model = lease.model
        return lease.call(lambda: _compute(model, texts))


def _compute(model: EmbeddingModel, texts: list[TokenIds]) -> list[Vector]:
    """Compute the vectors of a batch; on the owner thread."""
    ids, mask = padded(texts, model.encoder.padding)
    output = model.network(mx.array(ids), attention_mask=mx.array(mask))
    if model.pooling is None:
        pooled = getattr(output, "text_embeds", None)
    else:
        pooled = pool(output.last_hidden_state, mx.array(mask), model.pooling)
    if pooled is None or pooled.ndim != 2:
        raise IncompatibleModelError(f"'{model.name}' does not make one vector of a text.")
    vectors = np.array(pooled.astype(mx.float32))
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise ExecutionError("The model's output was not a number, so there is no vector.")
    return [tuple(row) for row in (vectors / lengths).tolist()]


def _require_dimensions(request: EmbeddingRequest, given: int, shortenable: bool) -> None:
    asked = request.settings.dimensions
    if asked is None or asked == given or (asked < given and shortenable):
        return
    reason = "a vector cannot be made longer" if asked > given else "no Matryoshka truncation"
    raise ValidationError.in_field(
        "dimensions", f"this model emits {given}-dimensional vectors; {asked} are not supported ({reason})"
    )
