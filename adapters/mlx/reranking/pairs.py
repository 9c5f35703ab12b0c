"""Pairs of a query and a document: their tokens, the interface of scorers, and truncation to the context window."""

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
    field: str
    """Field path of the document, for error messages."""


@attrs.frozen
class Scored:
    """The result for a pair."""

    logit: float
    tokens: int
    """Number of tokens that were computed."""


@attrs.frozen
class EncodedPairs:
    """The pairs of a request as tokens: the query with each document."""

    tokens: tuple[TokenIds, ...]
    truncations: tuple[Truncation, ...]
    segments: tuple[TokenIds, ...] = ()
    """Token type ids of each pair, for cross-encoders: 0 for the query, 1 for the document."""
    with_images: Mapping[int, ImagePair] = attrs.field(factory=dict)
    """Pairs with an image, by the index of their document; the processor makes their tokens when they are computed."""


class PairScorer(Protocol):
    """A reranker: tokenizes pairs on any thread, and computes their logits on the owner thread only."""

    @abstractmethod
    def encode(self, request: RerankRequest) -> EncodedPairs:
        """Return the tokens of every pair.

        Raises:
            ContextLengthError: The query leaves no room for a document, or a document is too long and truncation is
                off.
            CapabilityError: An instruction is given and the model takes none.
        """

    @abstractmethod
    def scores(self, pairs: EncodedPairs, indices: Sequence[int]) -> list[Scored]:
        """Compute the pairs with some indices as one batch, and return their logits.

        Raises:
            ContextLengthError, ValidationError: An image is too large, or the processor cannot take it.
        """


def room_of(request: RerankRequest, free: int, window: int) -> int:
    """Return the maximum number of tokens of a document.

    Args:
        request: The request.
        free: Tokens of the window that the query and the template leave.
        window: Size of the context window, tokens.

    Raises:
        ContextLengthError: There is no room for a document.
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
        ContextLengthError: Truncation is off.
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
        CapabilityError: There is an image.
    """
    if isinstance(request.query, ImageInput) or request.has_images:
        raise CapabilityError("This reranker reads texts, not images.")
    return request.query, tuple(each for each in request.documents if isinstance(each, str))
