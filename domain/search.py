"""Models on the hub, found by a search or described alone, before any of their weights is fetched."""

from collections.abc import Iterable, Mapping

import attrs

from mlxk.domain.download import RemoteModel
from mlxk.domain.errors import ValidationError

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
