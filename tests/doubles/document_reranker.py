"""In-memory double of the document reranker: the score counts the words that a document shares with the query.

reranker = InMemoryDocumentReranker(window=16)
reranker.rerank(RerankRequest(handle, "red apples", ("green apples", "a car"))).documents
"""

from mlxk.application.ports.model_tasks import DocumentReranker
from mlxk.domain.embedding import ImageInput, Truncation
from mlxk.domain.errors import Advice, CapabilityError, ContextLengthError, MlxkError, Remedy
from mlxk.domain.reranking import Relevance, Relevances, RerankRequest


class InMemoryDocumentReranker(DocumentReranker):
    """Counts shared words; a word is a token.

    Args:
        window: Context window in words, for a query and a document together.
        takes_instruction: Whether instructions are supported.
    """

    def __init__(self, window: int = 512, takes_instruction: bool = False) -> None:
        self._window = window
        self._takes_instruction = takes_instruction
        self.requests: list[RerankRequest] = []
        self.failure: MlxkError | None = None
        """Raised by every request."""

    def rerank(self, request: RerankRequest) -> Relevances:
        request.validate()
        self.requests.append(request)
        if self.failure is not None:
            raise self.failure
        settings = request.settings
        if settings.instruction is not None and not self._takes_instruction:
            raise CapabilityError.in_field("instruction", "this model takes no instruction")
        query = _words(request.query)
        room = self._window - len(query)
        if room < 1:
            raise ContextLengthError("query has too many tokens.", detail={"context_length": self._window})
        room = min(room, settings.max_tokens or room)
        documents, truncations, tokens = [], [], 0
        for index, document in enumerate(request.documents):
            words = _words(document)
            if len(words) > room:
                if not settings.truncate:
                    raise ContextLengthError(
                        f"documents[{index}] has {len(words)} tokens; the model reads {room} beside this query.",
                        hint=Advice(Remedy.TRUNCATE_INPUT),
                        detail={"context_length": room, "index": index},
                    )
                truncations.append(Truncation(index, len(words), room))
            read = words[:room]
            tokens += len(query) + len(read)
            documents.append(Relevance(index, 2.0 * sum(word in query for word in read) - len(query)))
        return Relevances(tuple(documents), tokens, "cpu", tuple(truncations))


def _words(given: str | ImageInput) -> list[str]:
    """Return the words of a text, after the digest of an image as one word."""
    return [given.image.digest, *given.text.split()] if isinstance(given, ImageInput) else given.split()
