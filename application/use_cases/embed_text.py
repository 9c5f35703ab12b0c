"""Embed text: resolve the model, judge whether it may run, and turn texts into vectors.

Owns the order of the checks and which model the vectors say they are of. How texts become vectors is the embedder's
business.
"""

import attrs

from mlxk.application.policy import require_embedding_model, require_memory
from mlxk.application.ports.memory_probe import MemoryProbe
from mlxk.application.ports.text_embedder import TextEmbedder
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.embedding import EmbeddingRequest, Embeddings, EmbeddingSettings, Input
from mlxk.domain.models.model import ModelDescription, Origin

_FINGERPRINT_DIGITS = 8


@attrs.frozen
class EmbeddingResult:
    """Vectors, and what they are of."""

    embeddings: Embeddings
    model: str
    """The same on every machine that has the same model: vectors of different models cannot be compared."""
    content_hash: str | None
    """Names the exact weights; None when nothing does."""

    @property
    def fingerprint(self) -> str:
        """A short name for the weights and the device that computed with them."""
        version = (self.content_hash or "nohash").removeprefix("sha256:")
        return f"{version[:_FINGERPRINT_DIGITS]}.{self.embeddings.device}"


@attrs.frozen
class EmbedText:
    """Turns texts into vectors."""

    resolve: ResolveModel
    describe: DescribeModel
    embedder: TextEmbedder
    memory: MemoryProbe

    def __call__(self, reference: str, inputs: tuple[Input, ...], settings: EmbeddingSettings) -> EmbeddingResult:
        """Turn texts into vectors.

        Args:
            reference: The model, as the user typed it.
            inputs: The texts.
            settings: How.

        Raises:
            ValidationError: The request is out of range, or the reference is malformed.
            ModelNotFoundError, AmbiguousModelError, RevisionNotFoundError: The reference means no single model.
            UnhealthyModelError, IncompatibleModelError, CapabilityError: The model cannot do this.
            InsufficientMemoryError: It is beyond the budget.
            ContextLengthError, ExecutionError: See ``TextEmbedder.embed``.
        """
        return self.embed(self.describe(self.resolve(reference)), inputs, settings)

    def embed(
        self, description: ModelDescription, inputs: tuple[Input, ...], settings: EmbeddingSettings
    ) -> EmbeddingResult:
        """Turn texts into vectors with a model that was found already; see ``__call__``.

        Args:
            description: The model.
            inputs: The texts.
            settings: How.
        """
        request = EmbeddingRequest(description.handle, inputs, settings)
        request.validate()
        require_embedding_model(description)
        require_memory(description, self.memory)
        return EmbeddingResult(self.embedder.embed(request), identity_of(description), description.content_hash)


def identity_of(description: ModelDescription) -> str:
    """Return the name of a model that is no path of this machine: where a workspace came from, if it is known."""
    handle, workspace = description.handle, description.workspace
    if handle.origin is not Origin.WORKSPACE:
        return handle.name
    return (workspace.source_repo if workspace else None) or handle.short_name
