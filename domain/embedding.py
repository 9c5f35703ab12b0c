"""Embeddings: requests and their limits, and unit vectors, one per text in the same order."""

import base64
import enum
import math
import struct
from collections.abc import Sequence

import attrs

from mlxk.domain.errors import ValidationError
from mlxk.domain.models.model import ModelHandle

MAX_INPUTS = 2048
"""Texts in one request."""

MAX_INPUT_CHARACTERS = 1_000_000
"""Length of one text, far beyond any context window."""

Vector = tuple[float, ...]
TokenIds = tuple[int, ...]
Input = str | TokenIds
"""A text, or the tokens of one."""


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


@attrs.frozen
class EmbeddingRequest:
    """The texts to embed."""

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
    """One per input, in the order of the request; each has length one."""
    tokens: int
    """Tokens of all inputs."""
    device: str
    """The device that computed them: ``gpu`` or ``cpu``."""
    truncations: tuple[Truncation, ...] = ()
    """Of the inputs that were truncated, in the order of the request."""

    @property
    def dimensions(self) -> int:
        """Numbers in a vector; 0 when there is none."""
        return len(self.vectors[0]) if self.vectors else 0


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
    faults = []
    for index, each in enumerate(inputs):
        if not each:
            faults.append(f"input[{index}] is empty")
        elif len(each) > MAX_INPUT_CHARACTERS:
            faults.append(f"input[{index}] is longer than {MAX_INPUT_CHARACTERS} (got {len(each)})")
    return faults
