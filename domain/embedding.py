"""Embeddings: requests and their limits, and vectors of length one.

Most models make one vector of an input. Multi-vector models make one of each token, which late interaction compares.
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
"""Texts in one request."""

MAX_IMAGES = 64
"""Images in one request."""

MAX_INPUT_CHARACTERS = 1_000_000
"""Length of one text, far beyond any context window."""

Vector = tuple[float, ...]
TokenIds = tuple[int, ...]
Vectors = tuple[Vector, ...]
"""Of the tokens of one input."""


@attrs.frozen
class ImageInput:
    """An image, alone or with a text beside it."""

    image: EncodedImage | DecodedImage
    """Decoded where it is computed."""
    text: str = ""


Input = str | TokenIds | ImageInput
"""A text, the tokens of one, or an image."""


class InputKind(enum.Enum):
    """The role of a text, for models trained with both; values are the names in the JSON API."""

    DOCUMENT = "document"
    QUERY = "query"


@attrs.frozen
class EmbeddingSettings:
    """How embeddings are computed."""

    kind: InputKind = InputKind.DOCUMENT
    instruction: str | None = None
    """The task of queries, for models that take one; None leaves the model's own."""
    dimensions: int | None = None
    """Length of the vectors, for models whose vectors may be cut; None leaves the model's own."""
    truncate: bool = False
    """Whether a text beyond the context window is truncated instead of refused."""
    prompt_name: str | None = None
    """Which of the model's own prompts stands before the texts; None takes the one of their kind."""


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
    """An input that the model did not read to its end."""

    index: int
    """Of the input in its request."""
    tokens: int
    """Tokens of the whole input, special tokens included."""
    kept: int
    """Tokens that the vector is of."""


@attrs.frozen
class Embeddings:
    """The vectors of a request."""

    vectors: tuple[Vector, ...]
    """One per input, in the order of the request, each of length one; none where the model makes several of each."""
    tokens: int
    """Tokens of all inputs."""
    device: str
    """The device that computed them: ``gpu`` or ``cpu``."""
    truncations: tuple[Truncation, ...] = ()
    """Of the inputs that were truncated, in the order of the request."""
    of_tokens: tuple[Vectors, ...] = ()
    """The vectors of each input, of a multi-vector model."""

    @property
    def dimensions(self) -> int:
        """Numbers in a vector; 0 when there is none."""
        every = (*self.vectors, *(vector for each in self.of_tokens for vector in each[:1]))
        return len(every[0]) if every else 0

    @property
    def results(self) -> tuple[Vector | Vectors, ...]:
        """What the model made of each input: a vector, or several."""
        return self.of_tokens or self.vectors


def shortened(vector: Sequence[float], dimensions: int) -> Vector:
    """Return the first numbers of a vector, normalised to length one; the vector itself when that is all of them."""
    if dimensions >= len(vector):
        return tuple(vector)
    head = vector[:dimensions]
    length = math.sqrt(sum(value * value for value in head))
    return tuple(value / length for value in head) if length else tuple(head)


def as_number(value: float) -> float:
    """Return a 32-bit float as short as it is exact: it has at most nine significant digits."""
    return float(f"{value:.9g}")


def as_base64(vector: Sequence[float]) -> str:
    """Return a vector as base64 of 32-bit floats, least significant byte first."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")


def _input_faults(inputs: tuple[Input, ...]) -> list[str]:
    if not inputs:
        return ["input must hold at least one text"]
    if len(inputs) > MAX_INPUTS:
        return [f"input takes at most {MAX_INPUTS} texts (got {len(inputs)})"]
    images = sum(isinstance(each, ImageInput) for each in inputs)
    if images > MAX_IMAGES:
        return [f"input takes at most {MAX_IMAGES} images (got {images})"]
    faults = []
    for index, given in enumerate(inputs):
        each = given.text if isinstance(given, ImageInput) else given
        if not each and not isinstance(given, ImageInput):
            faults.append(f"input[{index}] is empty")
        elif len(each) > MAX_INPUT_CHARACTERS:
            faults.append(f"input[{index}] is longer than {MAX_INPUT_CHARACTERS} (got {len(each)})")
    return faults
