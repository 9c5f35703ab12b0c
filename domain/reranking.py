"""Reranking: the relevance of documents to a query, and their order by it."""

import math
from collections.abc import Iterable

import attrs

from mlxk.domain.embedding import MAX_IMAGES, MAX_INPUT_CHARACTERS, ImageInput, Truncation
from mlxk.domain.errors import ValidationError
from mlxk.domain.models.model import ModelHandle

MAX_DOCUMENTS = 10_000
"""Most documents of one request."""


@attrs.frozen
class RerankSettings:
    """How documents are compared with a query."""

    instruction: str | None = None
    """What makes a document relevant, for models that take an instruction; None uses the model's default."""
    truncate: bool = True
    """Whether a document beyond the context window is truncated instead of refused."""
    max_tokens: int | None = None
    """Most tokens to read of one document; None means as many as the context window holds."""


@attrs.frozen
class RerankRequest:
    """A query and the documents to compare with it."""

    model: ModelHandle
    query: str | ImageInput
    documents: tuple[str | ImageInput, ...]
    settings: RerankSettings = RerankSettings()

    def validate(self) -> None:
        """Check every range.

        Raises:
            ValidationError: Names each field at fault, all at once.
        """
        query = self.query
        faults = [] if isinstance(query, ImageInput) or query.strip() else ["query is empty"]
        if not self.documents:
            faults.append("documents must hold at least one text")
        elif len(self.documents) > MAX_DOCUMENTS:
            faults.append(f"documents takes at most {MAX_DOCUMENTS} texts (got {len(self.documents)})")
        images = sum(isinstance(document, ImageInput) for document in self.documents)
        if images > MAX_IMAGES:
            faults.append(f"documents takes at most {MAX_IMAGES} images (got {images})")
        inputs = (("query", query), *((f"documents[{index}]", item) for index, item in enumerate(self.documents)))
        texts = [(field, item.text if isinstance(item, ImageInput) else item) for field, item in inputs]
        faults += [
            f"{field} is longer than {MAX_INPUT_CHARACTERS} characters (got {len(text)})"
            for field, text in texts
            if len(text) > MAX_INPUT_CHARACTERS
        ]
        if self.settings.max_tokens is not None and self.settings.max_tokens < 1:
            faults.append(f"max_tokens must be at least 1 (got {self.settings.max_tokens})")
        if faults:
            raise ValidationError("; ".join(faults))

    @property
    def has_images(self) -> bool:
        """Whether the query or a document has an image."""
        return any(isinstance(item, ImageInput) for item in (self.query, *self.documents))


@attrs.frozen
class Relevance:
    """The relevance of one document."""

    index: int
    """Index of the document in its request."""
    logit: float
    """The model's unbounded score; larger is more relevant."""

    @property
    def score(self) -> float:
        """The probability that the document is relevant, from 0 to 1: the sigmoid of the logit."""
        if self.logit >= 0:
            return 1 / (1 + math.exp(-self.logit))
        odds = math.exp(self.logit)
        return odds / (1 + odds)


@attrs.frozen
class Relevances:
    """The relevance of every document of a request."""

    documents: tuple[Relevance, ...]
    """In the order of the request."""
    tokens: int
    """Computed tokens: of each document together with the query, special tokens included."""
    device: str
    """The device that computed them: ``gpu`` or ``cpu``."""
    truncations: tuple[Truncation, ...] = ()
    """The truncated documents, in the order of the request; token counts are of the document alone."""


def ranked(documents: Iterable[Relevance], top: int | None = None) -> tuple[Relevance, ...]:
    """Return documents by descending relevance, equally relevant ones in the order of the request.

    Args:
        documents: In any order.
        top: How many to return; None returns all.
    """
    return tuple(sorted(documents, key=lambda document: (-document.logit, document.index))[:top])
