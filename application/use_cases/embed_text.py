"""Embed text: resolve, probe, policy, load, run; and the identity of the model that vectors belong to."""

import attrs

from mlxk.application.policy import require_embedding_model, require_memory
from mlxk.application.ports.model_tasks import TextEmbedder
from mlxk.application.ports.system import MemoryProbe
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.embedding import EmbeddingRequest, Embeddings, EmbeddingSettings, Input
from mlxk.domain.models.model import ModelDescription, Origin

_FINGERPRINT_DIGITS = 8


@attrs.frozen
class EmbeddingResult:
    """Vectors and their model."""

    embeddings: Embeddings
    model: str
    """Its name, equal on every machine: vectors of different models cannot be compared."""
    content_hash: str | None
    """Identifies the exact weights; None when it is unknown."""

    @property
    def fingerprint(self) -> str:
        """Identifies the weights and the device that computed the vectors."""
        version = (self.content_hash or "nohash").removeprefix("sha256:")
        return f"{version[:_FINGERPRINT_DIGITS]}.{self.embeddings.device}"


@attrs.frozen
class EmbedText:
    """Embeds texts."""

    resolve: ResolveModel
    describe: DescribeModel
    embedder: TextEmbedder
    memory: MemoryProbe

    def __call__(
        self, model: str | ModelDescription, inputs: tuple[Input, ...], settings: EmbeddingSettings
    ) -> EmbeddingResult:
        """Embed texts.

        Args:
            model: A reference, as the user typed it; or the description of a model that is resolved.
            inputs: The texts.
            settings: How to embed them.

        Raises:
            ValidationError: The request is out of range, or the reference is malformed.
            ModelNotFoundError, AmbiguousModelError, RevisionNotFoundError: The reference means no single model.
            UnhealthyModelError, IncompatibleModelError, CapabilityError: The model cannot do this.
            InsufficientMemoryError: It is beyond the budget.
            ContextLengthError, ExecutionError: See ``TextEmbedder.embed``.
        """
        description = self.describe(self.resolve(model)) if isinstance(model, str) else model
        request = EmbeddingRequest(description.handle, inputs, settings)
        request.validate()
        require_embedding_model(description)
        require_memory(description, self.memory)
        return EmbeddingResult(self.embedder.embed(request), identity_of(description), description.content_hash)


def identity_of(description: ModelDescription) -> str:
    """Return a model's name without a path of this machine: for a workspace its source repository, if known."""
    handle, workspace = description.handle, description.workspace
    if handle.origin is not Origin.WORKSPACE:
        return handle.name
    return (workspace.source_repo if workspace else None) or handle.short_name
