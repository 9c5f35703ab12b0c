"""Benchmark results: of a model on this machine, and of a server under load."""

import enum

import attrs

from mlxk.domain.benchmark import Level, Machine, Row, Span, Spread
from mlxk.domain.models.model import ModelDescription


@attrs.frozen
class ModelSpeed:
    """The result for a model on this machine."""

    model: ModelDescription
    machine: Machine
    load_seconds: float | None
    """Time to load the model, without the import of libraries. None for a model without text."""
    rows: tuple[Row, ...]
    """Rows of text generation."""
    peak_array_bytes: int
    """Peak memory of all arrays."""
    peak_process_bytes: int | None
    """Peak resident memory of the process; None when unknown."""
    notes: tuple[str, ...]
    """Caveats about the figures, a sentence each."""
    tasks: "tuple[TaskRow, ...]" = ()
    """Rows of images, sound and texts to embed."""


class Unit(enum.Enum):
    """The unit of a task's work; values are words for users."""

    IMAGES = "images"
    SOUND = "s of sound"
    TEXTS = "texts"


@attrs.frozen
class TaskRow:
    """The result for images, sound or texts, over its repeats."""

    name: str
    """Such as ``image448``, ``sound30``, ``embed128``."""
    unit: Unit
    amount: float
    """Work of each run, in that unit."""
    repeats: int
    per_second: Spread
    """Speed, in that unit."""
    seconds: Spread
    """Duration of a run."""
    span: Span

    @property
    def noisy(self) -> bool:
        """Whether its speed scatters too much to compare."""
        return self.per_second.noisy


@attrs.frozen
class ServerSpeed:
    """The result for a server."""

    model: str
    machine: Machine
    """The client's machine."""
    levels: tuple[Level, ...]
    notes: tuple[str, ...]
    """Caveats about the figures, a sentence each."""
    load_seconds: float | None = None
    """Time to load the model for the first request, as the server reports it; None when it does not."""
