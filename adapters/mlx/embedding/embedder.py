"""The text embedder port on mlx-vlm: batches of inputs of similar length, images one by one."""

import functools
import importlib.util

import numpy as np

from mlxk.adapters.mlx.embedding.batching import in_batches
from mlxk.adapters.mlx.embedding.encoding import Computed, EmbeddingModel, device
from mlxk.adapters.mlx.engine.model_pool import WantedModel
from mlxk.adapters.mlx.text_generator import ModelLeases
from mlxk.application.ports.model_tasks import TextEmbedder
from mlxk.domain.embedding import EmbeddingRequest, Embeddings, Vectors, shortened
from mlxk.domain.errors import BackendNotInstalledError, ExecutionError, ValidationError


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
            model = lease.model
            encoded = model.network.encode(request)
            results: dict[int, Computed] = {}
            compute = functools.partial(model.network.compute, encoded)
            for index, result in in_batches(lease, model.pace, encoded.tokens, encoded.images, compute):
                _require_dimensions(request, result.rows.shape[-1], model)
                results[index] = result
            device_name = lease.call(device)
        ordered = [results[index] for index in range(len(request.inputs))]
        vectors = [_unit_vectors(result, request.settings.dimensions) for result in ordered]
        per_token = ordered[0].rows.ndim > 1
        return Embeddings(
            () if per_token else tuple(rows[0] for rows in vectors),
            sum(result.tokens for result in ordered),
            device_name,
            encoded.truncations,
            tuple(vectors) if per_token else (),
        )


def _unit_vectors(computed: Computed, dimensions: int | None) -> Vectors:
    """Return the vectors of an input, truncated to ``dimensions`` if given, and normalized to length one.

    Raises:
        ExecutionError: A vector has a length of zero, or one that is not finite.
    """
    rows = np.atleast_2d(computed.rows)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise ExecutionError("The model's output was not a number, so there is no vector.")
    unit = map(tuple, (rows / lengths).tolist())
    return tuple(unit if dimensions is None else (shortened(vector, dimensions) for vector in unit))


def _require_dimensions(request: EmbeddingRequest, native: int, model: EmbeddingModel) -> None:
    requested = request.settings.dimensions
    if requested is None or requested == native:
        return
    if requested > native:
        reason = "a vector cannot be made longer"
    elif not model.shortenable:
        reason = "no Matryoshka truncation"
    elif model.lengths and requested not in model.lengths:
        reason = f"it was trained for {', '.join(map(str, sorted(model.lengths)))}"
    else:
        return
    raise ValidationError.in_field(
        "dimensions", f"this model emits {native}-dimensional vectors; {requested} are not supported ({reason})"
    )
