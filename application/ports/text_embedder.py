"""Port: text embeddings."""

from abc import abstractmethod
from typing import Protocol

from mlxk.domain.embedding import EmbeddingRequest, Embeddings


class TextEmbedder(Protocol):
    """Runs embedding models, loading them on request. Thread-safe."""

    @abstractmethod
    def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Return the embeddings of texts, normalised to length one.

        The embedding of a text does not depend on the other texts of the request.

        Raises:
            ValidationError: The request is out of range, the model does not support the number of dimensions, or a
                token is not in its vocabulary.
            CapabilityError: The model does not support instructions.
            ContextLengthError: A text is longer than the context window, and truncation was not requested.
            IncompatibleModelError, UntrustedModelCodeError, UnhealthyModelError, BackendNotInstalledError: The model
                cannot be loaded.
            ExecutionError: Loading or computing failed for another reason.
        """
