"""The pairs of a query and a document: their tokens, who scores them, and what fits into the context window."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs

from mlxk.domain.embedding import ImageInput, TokenIds, Truncation
from mlxk.domain.errors import Advice, CapabilityError, ContextLengthError, Remedy
from mlxk.domain.generation.media import DecodedImage
from mlxk.domain.reranking import RerankRequest


@attrs.frozen
class ImagePair:
    """A prompt with images."""

    pieces: tuple[TokenIds | DecodedImage, ...]
    place: str
    """The field of the document, for error messages."""


@attrs.frozen
class Scored:
    """What the network says about a pair."""

    logit: float
    tokens: int
    """Tokens that were computed."""


@attrs.frozen
class EncodedPairs:
    """The tokens of a request: of each document with the query."""

    tokens: tuple[TokenIds, ...]
    truncations: tuple[Truncation, ...]
    segments: tuple[TokenIds, ...] = ()
    """Of cross-encoders: for each token 1 where it is the document's, as their tokenizer numbers the two texts."""
    with_images: Mapping[int, ImagePair] = attrs.field(factory=dict)
    """The pairs with an image, by the index of their document; their tokens are known when they are computed."""


class PairScorer(Protocol):
    """Makes the tokens of pairs, on any thread; and computes their logits, on the owner thread only."""

    @abstractmethod
    def encode(self, request: RerankRequest) -> EncodedPairs:
        """Return the tokens of every pair.

        Raises:
            ContextLengthError: The query leaves no room for a document; or one is too long and truncation is off.
            CapabilityError: The model takes no instruction, and one is given.
        """

    @abstractmethod
    def scores(self, pairs: EncodedPairs, indices: Sequence[int]) -> list[Scored]:
        """Return the logits of some of the pairs, computed as one batch.

        Raises:
            ContextLengthError, ValidationError: An image is too large, or the processor cannot take it.
        """


def room_of(request: RerankRequest, free: int, window: int) -> int:
    """Return how many tokens are read of a document.

    Raises:
        ContextLengthError: There is no room for any.
    """
    if free < 1:
        raise ContextLengthError(
            f"query has too many tokens: with it, {window} tokens have no room for a document.",
            hint="Shorten the query.",
            detail={"prompt_tokens": window - free + 1, "context_length": window},
        )
    return min(free, request.settings.max_tokens or free)


def truncation_of(request: RerankRequest, index: int, tokens: int, kept: int) -> Truncation:
    """Return the truncation of a document.

    Raises:
        ContextLengthError: It is not to be truncated.
    """
    if not request.settings.truncate:
        raise ContextLengthError(
            f"documents[{index}] has {tokens} tokens; the model reads {kept} beside this query.",
            hint=Advice(Remedy.TRUNCATE_INPUT),
            detail={"prompt_tokens": tokens, "context_length": kept, "index": index},
        )
    return Truncation(index, tokens, kept)


def texts_of(request: RerankRequest) -> tuple[str, tuple[str, ...]]:
    """Return the query and the documents of a request to a model that reads texts.

    Raises:
        CapabilityError: One has an image.
    """
    if isinstance(request.query, ImageInput) or request.has_images:
        raise CapabilityError("This reranker reads texts, not images.")
    return request.query, tuple(each for each in request.documents if isinstance(each, str))
