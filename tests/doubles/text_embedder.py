"""In-memory double of the text embedder: vectors of letter counts, so that similar texts have similar vectors.

An image is embedded as the text of its digest.

embedder = InMemoryTextEmbedder(dimensions=8)
embedder.embed(EmbeddingRequest(handle, ("hello",))).vectors
"""

import math

from mlxk.application.ports.model_tasks import TextEmbedder
from mlxk.domain.embedding import (
    EmbeddingRequest,
    Embeddings,
    ImageInput,
    Input,
    InputKind,
    Truncation,
    Vector,
    shortened,
)
from mlxk.domain.errors import Advice, ContextLengthError, MlxkError, Remedy, ValidationError


class InMemoryTextEmbedder(TextEmbedder):
    """Embeds texts by their letter counts.

    Args:
        dimensions: Length of a vector.
        window: Context window in words.
        can_shorten: Whether requests may ask for shorter vectors.
    """

    def __init__(self, dimensions: int = 16, window: int = 512, can_shorten: bool = True) -> None:
        self._dimensions = dimensions
        self._window = window
        self._can_shorten = can_shorten
        self.requests: list[EmbeddingRequest] = []
        self.several = False
        """Whether to return a vector for each word instead of one for each text."""
        self.failure: MlxkError | None = None
        """Raised by every request."""

    def embed(self, request: EmbeddingRequest) -> Embeddings:
        request.validate()
        self.requests.append(request)
        if self.failure is not None:
            raise self.failure
        settings = request.settings
        length = settings.dimensions or self._dimensions
        if length > self._dimensions or (length < self._dimensions and not self._can_shorten):
            raise ValidationError(f"dimensions: this model's vectors have {self._dimensions} numbers.")
        read = [self._read(each, index, settings.truncate) for index, each in enumerate(request.inputs)]
        prefix = "query: " if settings.kind is InputKind.QUERY else ""
        vectors = tuple(shortened(self._vector(prefix + " ".join(words)), length) for words in read)
        each_word = tuple(tuple(shortened(self._vector(word), length) for word in words) for words in read)
        lengths = [len(_words(each)) for each in request.inputs]
        truncations = tuple(
            Truncation(index, length, self._window) for index, length in enumerate(lengths) if length > self._window
        )
        several = each_word if self.several else ()
        return Embeddings(() if several else vectors, sum(map(len, read)), "cpu", truncations, several)

    def _read(self, text: Input, index: int, truncate: bool) -> list[str]:
        words = _words(text)
        if len(words) > self._window and not truncate:
            raise ContextLengthError(
                f"input[{index}] has {len(words)} tokens; the model reads {self._window}.",
                hint=Advice(Remedy.TRUNCATE_INPUT),
                detail={"prompt_tokens": len(words), "context_length": self._window, "index": index},
            )
        return words[: self._window]

    def _vector(self, text: str) -> Vector:
        counts = [1.0] * self._dimensions
        for character in text:
            counts[ord(character) % self._dimensions] += 1.0
        length = math.hypot(*counts)
        return tuple(count / length for count in counts)


def _words(text: Input) -> list[str]:
    if isinstance(text, ImageInput):
        return [text.image.digest, *text.text.split()]
    return text.split() if isinstance(text, str) else [chr(97 + token % 26) for token in text]
