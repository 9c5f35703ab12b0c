"""Models to begin with: what each is for, how large it is, and where these facts come from."""

import enum
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

import attrs

from mlxk.domain.models.memory import MemoryFit


class Purpose(enum.Enum):
    """What a model is for."""

    CHAT = "chat"
    CODE = "code"
    VISION = "vision"
    SPEECH = "speech"
    EMBED = "embed"


SCALE_BITS = 32
"""Bits of the scale and the bias of a group of quantized weights, 16 each."""


Value = TypeVar("Value", int, str)


@attrs.frozen
class Fact(Generic[Value]):
    """A value with its source."""

    value: Value
    source: str
    """Address of a page that states it."""
    date: str
    """When the page was read, as in 2026-11-29."""
    note: str | None = None
    """How the page states it, where that is not obvious."""


@attrs.frozen
class RecommendedModel:
    """One model of the list."""

    name: str
    """``org/name``."""
    purpose: Purpose
    why: str
    """One line, for a user who chooses."""
    bits: int
    """Bits of a weight."""
    group_size: int | None
    """Weights that share a scale and a bias; None for weights that are not quantized."""
    parameters: Fact[int] | None
    stated_bytes: Fact[int] | None
    """Size of the weights; None where no source states it, and it is computed."""
    context_length: Fact[int] | None
    """Tokens."""
    license: Fact[str] | None

    @property
    def weight_bytes(self) -> int:
        """Size of the weights: as stated, else parameters times bits, scales and biases included."""
        if self.stated_bytes is not None:
            return self.stated_bytes.value
        if self.parameters is None:
            return 0
        bits = self.bits + (SCALE_BITS / self.group_size if self.group_size else 0)
        return round(self.parameters.value * bits / 8)

    @property
    def is_computed(self) -> bool:
        """Whether the size is computed."""
        return self.stated_bytes is None


@attrs.frozen
class Recommendations:
    """The list, and the terms that find further models on the hub."""

    models: tuple[RecommendedModel, ...]
    searches: Mapping[Purpose, str]


@attrs.frozen
class Recommendation:
    """One model and this machine."""

    model: RecommendedModel
    fit: MemoryFit


_ORDER = (MemoryFit.FITS, MemoryFit.TIGHT, MemoryFit.UNKNOWN, MemoryFit.EXCEEDS)


def best_first(found: Iterable[Recommendation]) -> tuple[Recommendation, ...]:
    """Return recommendations by purpose, and of each those that fit first, the largest of them first.

    Of those that do not fit, the smallest comes first: it lacks the least.
    """
    purposes = list(Purpose)

    def key(each: Recommendation) -> tuple[int, int, int]:
        size = each.model.weight_bytes
        return (
            purposes.index(each.model.purpose),
            _ORDER.index(each.fit),
            size if each.fit is MemoryFit.EXCEEDS else -size,
        )

    return tuple(sorted(found, key=key))
