"""Embeddings: requests and their limits, and vectors of length one.

Most models return one vector for an input. Multi-vector models return one for each token, for late interaction.
"""

import base64
import enum
import math
import struct
from collections.abc import Sequence

import attrs

from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.media import DecodedImage, EncodedImage
from mlxk.domain.models.model import ModelHandle

MAX_INPUTS = 2048
"""Most inputs of one request."""

MAX_IMAGES = 64
"""Most images of one request."""

MAX_INPUT_CHARACTERS = 1_000_000
"""Longest text, far beyond any context window."""

Vector = tuple[float, ...]
TokenIds = tuple[int, ...]
Vectors = tuple[Vector, ...]
"""One vector for each token of one input."""


@attrs.frozen
class ImageInput:
    """An image, alone or with a text beside it."""

    image: EncodedImage | DecodedImage
    """Encoded in a request; the embedder gets it decoded."""
    text: str = ""


Input = str | TokenIds | ImageInput
"""A text, a tokenized text, or an image."""


class InputKind(enum.Enum):
    """The role of a text, for models trained with both; values are the names in the JSON API."""

    DOCUMENT = "document"
    QUERY = "query"


@attrs.frozen
class EmbeddingSettings:
    """How embeddings are computed."""

    kind: InputKind = InputKind.DOCUMENT
    instruction: str | None = None
    """The task of queries, for models that take one; None uses the model's default."""
    dimensions: int | None = None
    """Length of the vectors, for models whose vectors may be shortened; None keeps the model's length."""
    truncate: bool = False
    """Whether a text beyond the context window is truncated instead of refused."""
    prompt_name: str | None = None
    """Name of the model's prompt to put before the texts; None selects it by ``kind``."""


@attrs.frozen
class EmbeddingRequest:
    """The texts and images to embed."""

    model: ModelHandle
    inputs: tuple[Input, ...]
    settings: EmbeddingSettings = EmbeddingSettings()

    def validate(self) -> None:
        """Check every range.

        Raises:
            ValidationError: Names each field at fault, all at once.
        """
        settings = self.settings
        faults = _input_faults(self.inputs)
        if settings.dimensions is not None and settings.dimensions < 1:
            faults.append(f"dimensions must be at least 1 (got {settings.dimensions})")
        if settings.instruction is not None and settings.kind is not InputKind.QUERY:
            faults.append("instruct belongs to queries")
        if settings.prompt_name is not None and (settings.instruction or settings.kind is InputKind.QUERY):
            faults.append("prompt_name says which prompt is taken; query and instruct say so, too")
        if faults:
            raise ValidationError("; ".join(faults))


@attrs.frozen
class Truncation:
    """A truncated input."""

    index: int
    """Index of the input in its request."""
    tokens: int
    """Tokens of the complete input, special tokens included."""
    kept: int
    """Tokens that the model read."""


@attrs.frozen
class Embeddings:
    """The vectors of a request."""

    vectors: tuple[Vector, ...]
    """One per input, in the order of the request, each of length one; empty for a multi-vector model."""
    tokens: int
    """Tokens of all inputs."""
    device: str
    """The device that computed them: ``gpu`` or ``cpu``."""
    truncations: tuple[Truncation, ...] = ()
    """The truncated inputs, in the order of the request."""
    of_tokens: tuple[Vectors, ...] = ()
    """For a multi-vector model: the vectors of each input."""

    @property
    def dimensions(self) -> int:
        """Numbers in a vector; 0 without vectors."""
        vectors = (*self.vectors, *(vector for token_vectors in self.of_tokens for vector in token_vectors[:1]))
        return len(vectors[0]) if vectors else 0

    @property
    def results(self) -> tuple[Vector | Vectors, ...]:
        """The result for each input: a vector, or one for each token."""
        return self.of_tokens or self.vectors


def shortened(vector: Sequence[float], dimensions: int) -> Vector:
    """Return the first numbers of a vector, normalised to length one; the vector unchanged if it has no more."""
    if dimensions >= len(vector):
        return tuple(vector)
    head = vector[:dimensions]
    length = math.sqrt(sum(value * value for value in head))
    return tuple(value / length for value in head) if length else tuple(head)


def as_number(value: float) -> float:
    """Return a 32-bit float rounded to the nine significant digits that identify it, so that JSON stays short."""
    return float(f"{value:.9g}")


def as_base64(vector: Sequence[float]) -> str:
    """Return a vector as base64 of little-endian 32-bit floats."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")


def _input_faults(inputs: tuple[Input, ...]) -> list[str]:
    if not inputs:
        return ["input must hold at least one text"]
    if len(inputs) > MAX_INPUTS:
        return [f"input takes at most {MAX_INPUTS} texts (got {len(inputs)})"]
    images = sum(isinstance(item, ImageInput) for item in inputs)
    if images > MAX_IMAGES:
        return [f"input takes at most {MAX_IMAGES} images (got {images})"]
    faults = []
    for index, item in enumerate(inputs):
        text = item.text if isinstance(item, ImageInput) else item
        if not text and not isinstance(item, ImageInput):
            faults.append(f"input[{index}] is empty")
        elif len(text) > MAX_INPUT_CHARACTERS:
            faults.append(f"input[{index}] is longer than {MAX_INPUT_CHARACTERS} (got {len(text)})")
    return faults
