"""The networks of a vision model: its encoder, with a cache, and its language model as the engine steps it.

A vision encoder computes features of pixels, at the cost of hundreds of tokens. Its outputs for the images of a prompt
are kept and reused when another prompt contains the same images in the same order. The language model takes token ids
and a KV cache, and returns logits.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_vlm.models.cache import make_prompt_cache

ENCODER_NAMES = ("vision_tower", "vision_model", "vision_encoder", "visual")
"""Attributes under which mlx-vlm's models have their vision encoder."""

MAX_BYTES = 512 * 1024 * 1024
"""Size limit of the cache of one model."""


class CachingEncoder:
    """Wraps a vision encoder with a cache; used on the owner thread only.

    Args:
        encoder: The wrapped encoder.
        max_bytes: Size limit; the least recently used features are evicted first.
    """

    def __init__(self, encoder: Any, max_bytes: int = MAX_BYTES) -> None:  # noqa: ANN401
        self._encoder = encoder
        self._max_bytes = max_bytes
        self._features: OrderedDict[tuple[str, int], tuple[Any, int]] = OrderedDict()
        self._size_bytes = 0
        self._identity: str | None = None
        self._calls = 0
        self.computed = 0
        """How often the encoder itself was called."""

    @contextlib.contextmanager
    def images(self, identity: str) -> Iterator[None]:
        """Set which images are encoded inside the block.

        Args:
            identity: A text that is unique to these images.
        """
        self._identity, self._calls = identity, 0
        try:
            yield
        finally:
            self._identity = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        """Return the features from the cache, or compute them."""
        if self._identity is None:
            return self._compute(arguments, options)
        key = (self._identity, self._calls)
        self._calls += 1
        if key not in self._features:
            self._store(key, self._compute(arguments, options))
        self._features.move_to_end(key)
        features = self._features[key][0]
        self._evict()
        return features

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """Delegate everything else to the encoder."""
        return getattr(self._encoder, name)

    def _compute(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:  # noqa: ANN401
        self.computed += 1
        return self._encoder(*arguments, **options)

    def _store(self, key: tuple[str, int], features: Any) -> None:  # noqa: ANN401
        arrays = [leaf for _, leaf in tree_flatten(features) if isinstance(leaf, mx.array)]
        mx.eval(arrays)
        size = sum(array.nbytes for array in arrays)
        self._features[key] = (features, size)
        self._size_bytes += size

    def _evict(self) -> None:
        while self._size_bytes > self._max_bytes and self._features:
            _, (_, size) = self._features.popitem(last=False)
            self._size_bytes -= size


def with_cache(model: Any) -> CachingEncoder | None:  # noqa: ANN401
    """Replace a model's vision encoder by a caching one and return it; None when no known attribute has one."""
    for name in ENCODER_NAMES:
        encoder = getattr(model, name, None)
        if encoder is not None and callable(encoder):
            caching = CachingEncoder(encoder)
            setattr(model, name, caching)
            return caching
    return None


@attrs.frozen(eq=False)
class VisionTemplate:
    """What rendering a prompt needs of a model; used on any thread."""

    processor: Any
    """Converts text and images to the model's inputs."""
    config: Any
    """Of the architecture, as mlx-vlm has it."""

    @property
    def type(self) -> str:
        """The architecture, in mlx-vlm's terms."""
        return str(self.config.model_type)


@attrs.frozen(eq=False)
class VisionParts:
    """A model as mlx-vlm loads it; used on the owner thread only."""

    model: Any
    """The complete model: encoders and language model."""
    processor: Any
    """Converts text and images to the model's inputs."""
    encoder: CachingEncoder | None
    """The caching vision encoder; None when the model's was not found."""

    @property
    def language(self) -> Any:  # noqa: ANN401 - mlx-vlm has no types to name
        """The language model."""
        return self.model.language_model

    @property
    def type(self) -> str:
        """The architecture, in mlx-vlm's terms."""
        return self.template.type

    @property
    def template(self) -> VisionTemplate:
        """What rendering needs."""
        return VisionTemplate(self.processor, self.model.config)


class RowPositions:
    """The offsets between the rotary positions of each row and its token count; the last layer of a cache.

    Args:
        offsets: Shape [B, 1], integers; None for models whose positions are the token count.
    """

    def __init__(self, offsets: mx.array | None = None) -> None:
        self.offsets = offsets

    @property
    def state(self) -> list[mx.array]:
        """Its arrays."""
        return [] if self.offsets is None else [self.offsets]

    @property
    def nbytes(self) -> int:
        """Its size."""
        return sum(array.nbytes for array in self.state)

    def step(self) -> Mapping[str, Any]:
        """Return the language model's keyword arguments for the next step."""
        return {} if self.offsets is None else {"rope_deltas": self.offsets}

    def is_trimmable(self) -> bool:
        """Whether tokens can be removed: always, since the offset is set again with every prompt."""
        return True

    def trim(self, tokens: int) -> int:
        """Remove tokens."""
        return tokens

    @classmethod
    def merge(cls, rows: "Sequence[RowPositions]") -> "RowPositions":
        """Merge rows into a batch."""
        return cls(_concatenated([row.offsets for row in rows]))

    def extend(self, other: "RowPositions") -> None:
        """Append the rows of another batch."""
        self.offsets = _concatenated([self.offsets, other.offsets])

    def filter(self, keep: Sequence[int]) -> None:
        """Keep some rows."""
        if self.offsets is not None:
            self.offsets = self.offsets[mx.array(list(keep))]

    def extract(self, index: int) -> "RowPositions":
        """Return a single row."""
        return RowPositions(None if self.offsets is None else self.offsets[index : index + 1])


class RowFeatures:
    """Features that every step of a sequence attends to; cannot be merged with another sequence's.

    Args:
        always: Keyword arguments of the language model for every step.
        first: Keyword arguments for the first step only, which computes the prompt's last token.
    """

    def __init__(self, always: Mapping[str, Any], first: Mapping[str, Any]) -> None:
        self._always = dict(always)
        self._first = dict(first)

    @property
    def state(self) -> list[mx.array]:
        """Its arrays."""
        return [value for value in (*self._always.values(), *self._first.values()) if isinstance(value, mx.array)]

    @property
    def nbytes(self) -> int:
        """Its size."""
        return sum(array.nbytes for array in self.state)

    def step(self) -> Mapping[str, Any]:
        """Return the language model's keyword arguments for the next step."""
        options = {**self._always, **self._first}
        self._first = {}
        return options

    def is_trimmable(self) -> bool:
        """Whether tokens can be removed: always, since the features do not depend on them."""
        return True

    def trim(self, tokens: int) -> int:
        """Remove tokens."""
        return tokens


class VisionNetwork:
    """Steps the language model of a vision-language model.

    Args:
        language: mlx-vlm's language model.
    """

    def __init__(self, language: Any) -> None:  # noqa: ANN401 - mlx-vlm has no types to name
        self._language = language
        self.has_positions = hasattr(language, "_rope_deltas")
        """Whether positions differ from the token count."""

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        """Compute the logits that follow the next token of every row.

        Args:
            tokens: Shape [B, 1].
            cache: Of ``make_cache``, or merged from several.

        Returns:
            Shape [B, 1, V].
        """
        *layers, extra = cache
        logits: mx.array = logits_of(self._language(tokens, cache=layers, **extra.step()))
        return logits

    def make_cache(self) -> list[Any]:
        """Return an empty cache: the model's own layers and the position offsets."""
        return [*make_prompt_cache(self._language), RowPositions()]


def logits_of(output: Any) -> Any:  # noqa: ANN401
    """Return the logits of a language model's output, an array or an object."""
    return getattr(output, "logits", output)


def _concatenated(offsets: Sequence[mx.array | None]) -> mx.array | None:
    known = [each for each in offsets if each is not None]
    return mx.concatenate(known, axis=0) if known else None
