"""The document reranker port on mlx-vlm and mlx-lm: batches of pairs of similar length."""

import functools
import importlib.util
import math

from mlxk.adapters.mlx.embedding.batching import in_batches
from mlxk.adapters.mlx.embedding.encoding import device
from mlxk.adapters.mlx.engine.model_pool import WantedModel
from mlxk.adapters.mlx.text_generator import ModelLeases
from mlxk.application.ports.model_tasks import DocumentReranker
from mlxk.domain.errors import BackendNotInstalledError, ExecutionError
from mlxk.domain.reranking import Relevance, Relevances, RerankRequest


class MlxDocumentReranker(DocumentReranker):
    """Runs the rerankers that mlx-vlm and mlx-lm support.

    Args:
        leases: Leases the models.
    """

    def __init__(self, leases: ModelLeases) -> None:
        self._leases = leases

    def rerank(self, request: RerankRequest) -> Relevances:
        request.validate()
        if importlib.util.find_spec("mlx_vlm") is None:
            raise BackendNotInstalledError("Running rerankers needs mlx-vlm.", hint="Install it: pip install mlx-vlm")
        # Not at the top: mlx-vlm may be absent, and takes a second to import.
        from mlxk.adapters.mlx.reranking.scoring import Reranker, load_reranker

        with self._leases.lease(WantedModel(request.model, load=load_reranker), Reranker) as lease:
            scorer, pace = lease.model.scorer, lease.model.pace
            pairs = scorer.encode(request)
            compute = functools.partial(scorer.scores, pairs)
            scored = dict(in_batches(lease, pace, pairs.tokens, pairs.with_images, compute))
            device_name = lease.call(device)
        ordered = [scored[index] for index in range(len(request.documents))]
        if not all(math.isfinite(each.logit) for each in ordered):
            raise ExecutionError("The model's output was not a number, so there is no order of the documents.")
        documents = tuple(Relevance(index, each.logit) for index, each in enumerate(ordered))
        return Relevances(documents, sum(each.tokens for each in ordered), device_name, pairs.truncations)
