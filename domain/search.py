"""Models to begin with: those of the hub, found by a search or described alone, and those that are recommended."""

import enum
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

import attrs

from mlxk.domain.download import RemoteModel
from mlxk.domain.errors import ValidationError
from mlxk.domain.models.footprint import MemoryFit

MAX_TERMS = 200
"""Most characters of the terms of a search."""
MAX_RESULTS = 100
"""Most models that one search lists."""


@attrs.frozen
class FoundModel:
    """One model, as the hub's listing describes it."""

    name: str
    """``org/name``."""
    made_for_mlx: bool
    """Whether its author declares the MLX format."""
    weight_bytes: int | None
    """Size of its safetensors, from the types and numbers of their elements; None where the hub does not state them."""
    downloads: int
    """In the last month."""
    license: str | None
    gated: bool
    """Whether its author decides who may have it."""


@attrs.frozen
class RemoteCard:
    """One model, as the hub describes it alone."""

    model: RemoteModel
    """Its revision and files."""
    downloads: int
    """In the last month."""
    license: str | None
    library: str | None
    """What its author says that it is for, such as ``mlx`` or ``transformers``."""
    task: str | None
    """Such as ``text-generation``."""
    base_models: tuple[str, ...]
    """The models that it was made from, sorted."""
    gated: bool
    private: bool
    accessible: bool
    """Whether its files can be read with the token, or without one."""
    config: Mapping[str, object] | None = None
    """Its ``config.json``; None where that is absent, not accessible or not a mapping."""


def check_terms(terms: str) -> str:
    """Validate the terms of a search and return them without surrounding space.

    Raises:
        ValidationError: They are blank or too long.
    """
    stripped = " ".join(terms.split())
    if not stripped:
        raise ValidationError("a search needs at least one word", hint="For example: llama 3b")
    if len(stripped) > MAX_TERMS:
        raise ValidationError(f"the terms of a search must have at most {MAX_TERMS} characters")
    return stripped


def mlx_first(models: Iterable[FoundModel]) -> tuple[FoundModel, ...]:
    """Return models, each once, those for MLX first, and the most downloaded first among each."""
    unique = {model.name: model for model in models}.values()
    return tuple(sorted(unique, key=lambda model: (not model.made_for_mlx, -model.downloads, model.name)))


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
class ModelPair:
    """The same model in two registries, at a similar number of bits."""

    here: str
    """On the hub."""
    elsewhere: str


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
