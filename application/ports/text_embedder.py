"""Port: texts as vectors."""

from abc import abstractmethod
from typing import Protocol

from mlxk.domain.embedding import EmbeddingRequest, Embeddings


class TextEmbedder(Protocol):
    """Runs embedding models. Loads what a request names when it is not loaded yet. May be called from any thread."""

    @abstractmethod
    def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Turn texts into vectors of length one.

        The vector of a text is the same whatever else the request holds.

        Raises:
            ValidationError: The request is out of range, or its vectors cannot have that length, or a token is none of
                the model's.
            CapabilityError: The model takes no instruction.
            ContextLengthError: A text is longer than the model's window, and is not to be cut.
            IncompatibleModelError, UntrustedModelCodeError, UnhealthyModelError, BackendNotInstalledError: The model
                cannot be loaded.
            ExecutionError: Loading or computing failed for a reason of its own.
        """
