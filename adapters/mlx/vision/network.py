"""The language model of a vision model as the engine steps it: token ids and a KV cache in, logits out."""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import mlx.core as mx

from mlxk.adapters.mlx.vision.encoder_cache import RememberingTower


@attrs.frozen(eq=False)
class VisionParts:
    """A model as mlx-vlm loads it. Belongs to the owner thread."""

    model: Any
    """Looks at pixels, and holds the language model."""
    processor: Any
    """Turns text and images into what the model takes."""
    tower: RememberingTower | None
    """Remembers what was seen; None when the model keeps its sight somewhere we do not know."""

    @property
    def language(self) -> Any:  # noqa: ANN401 - mlx-vlm has no types to name
        """The part that writes."""
        return self.model.language_model

    @property
    def type(self) -> str:
        """The architecture, as mlx-vlm calls it."""
        return str(self.model.config.model_type)


class RowPositions:
    """How far the positions of each row are from the count of its tokens.

    Args:
        distances: Shape [B, 1], whole numbers; None for models that count tokens and nothing else.
    """

    def __init__(self, distances: mx.array | None = None) -> None:
        self.distances = distances

    @property
    def state(self) -> list[mx.array]:
        """What there is to compute."""
        return [] if self.distances is None else [self.distances]

    @property
    def nbytes(self) -> int:
        """What it takes."""
        return sum(array.nbytes for array in self.state)

    def step(self) -> Mapping[str, Any]:
        """Return what the language model is to be given beside the next tokens."""
        return {} if self.distances is None else {"rope_deltas": self.distances}

    def is_trimmable(self) -> bool:
        """Whether tokens can be taken back: they can, the distance is set anew with every prompt."""
        return True

    def trim(self, tokens: int) -> int:
        """Take tokens back."""
        return tokens

    @classmethod
    def merge(cls, rows: "Sequence[RowPositions]") -> "RowPositions":
        """Join rows into a batch."""
        return cls(_joined([row.distances for row in rows]))

    def extend(self, other: "RowPositions") -> None:
        """Take the rows of another batch in."""
        self.distances = _joined([self.distances, other.distances])

    def filter(self, keep: Sequence[int]) -> None:
        """Keep some rows."""
        if self.distances is not None:
            self.distances = self.distances[mx.array(list(keep))]

    def extract(self, index: int) -> "RowPositions":
        """Return one row by itself."""
        return RowPositions(None if self.distances is None else self.distances[index : index + 1])


class RowFeatures:
    """What every step of one answer looks at; it cannot be merged with another answer's.

    Args:
        always: Given to the language model at every step.
        first: Given at the first step only, which still belongs to the prompt.
    """

    def __init__(self, always: Mapping[str, Any], first: Mapping[str, Any]) -> None:
        self._always = dict(always)
        self._first = dict(first)

    @property
    def state(self) -> list[mx.array]:
        """What there is to compute."""
        return [value for value in (*self._always.values(), *self._first.values()) if isinstance(value, mx.array)]

    @property
    def nbytes(self) -> int:
        """What it takes."""
        return sum(array.nbytes for array in self.state)

    def step(self) -> Mapping[str, Any]:
        """Return what the language model is to be given beside the next tokens."""
        given = {**self._always, **self._first}
        self._first = {}
        return given

    def is_trimmable(self) -> bool:
        """Whether tokens can be taken back: what was seen stays the same."""
        return True

    def trim(self, tokens: int) -> int:
        """Take tokens back."""
        return tokens


class VisionNetwork:
    """Steps the language model of a model that looks at images.

    Args:
        language: mlx-vlm's language model.
    """

    def __init__(self, language: Any) -> None:  # noqa: ANN401 - mlx-vlm has no types to name
        self._language = language
        self.has_positions = hasattr(language, "_rope_deltas")
        """Whether positions are more than the count of tokens."""

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        """Compute the logits that follow the next token of every row.

        Args:
            tokens: Shape [B, 1].
            cache: As ``make_cache`` made it, or merged from several.

        Returns:
            Shape [B, 1, V].
        """
        *layers, extra = cache
        logits: mx.array = logits_of(self._language(tokens, cache=layers, **extra.step()))
        return logits

    def make_cache(self) -> list[Any]:
        """Return an empty cache: the model's own layers, and what rides along."""
        from mlx_vlm.models.cache import make_prompt_cache

        return [*make_prompt_cache(self._language), RowPositions()]


def logits_of(output: Any) -> Any:  # noqa: ANN401
    """Return the logits in whatever a language model returns."""
    return getattr(output, "logits", output)


def _joined(distances: Sequence[mx.array | None]) -> mx.array | None:
    known = [each for each in distances if each is not None]
    return mx.concatenate(known, axis=0) if known else None
