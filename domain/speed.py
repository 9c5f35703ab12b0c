"""The results of benchmarks: of a model of this machine, and of a server under load."""

import enum

import attrs

from mlxk.domain.benchmark import Level, Machine, Row, Span, Spread
from mlxk.domain.models.model import ModelDescription


@attrs.frozen
class ModelSpeed:
    """The result for a model of this machine."""

    model: ModelDescription
    machine: Machine
    load_seconds: float | None
    """From the request to the model in memory; libraries are imported before. None for a model without text."""
    rows: tuple[Row, ...]
    """Of text."""
    peak_array_bytes: int
    """Most memory of all arrays."""
    peak_process_bytes: int | None
    """Most resident memory of the process; None when unknown."""
    notes: tuple[str, ...]
    """What limits the meaning of the figures, a sentence each."""
    tasks: "tuple[TaskRow, ...]" = ()
    """Of everything else."""


class Unit(enum.Enum):
    """What a task is measured in; values are words for users."""

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
    """What is done in each run, in that unit."""
    repeats: int
    per_second: Spread
    """In that unit."""
    seconds: Spread
    """Of each run."""
    span: Span

    @property
    def noisy(self) -> bool:
        """Whether its speed varies much."""
        return self.per_second.noisy


@attrs.frozen
class ServerSpeed:
    """The result for a server."""

    model: str
    machine: Machine
    """The one that asked."""
    levels: tuple[Level, ...]
    notes: tuple[str, ...]
    """As for a model."""
    load_seconds: float | None = None
    """To have the model in memory for the first request, as the server states it; None when it does not."""
