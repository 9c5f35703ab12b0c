"""The networks of a vision model: its encoder, with a cache, and its language model as the engine steps it.

A vision encoder computes features of pixels, at the cost of hundreds of tokens. They are kept and reused when another
prompt contains the same image. The language model takes token ids and a KV cache, and returns logits.
"""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_vlm.models.cache import make_prompt_cache

from mlxk.application.recently_used import RecentlyUsed

ENCODER_NAMES = ("vision_tower", "vision_model", "vision_encoder", "visual")
"""Attributes under which mlx-vlm's models have their vision encoder."""

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of an encoder."""


@attrs.define
class FeatureCounters:
    """What one model's cache of features did; written on the owner thread, readable from any."""

    hits: int = 0
    computed: int = 0
    """Calls of the encoder itself."""
    size_bytes: int = 0
    """What is kept."""


class CachingEncoder:
    """Wraps a vision encoder with a cache; used on the owner thread only.

    Features are kept by the content of what they are computed from, and for each image by itself where the arguments
    show where one image ends: so a conversation that gets another image has only that one computed.

    Args:
        encoder: The wrapped encoder.
    """

    def __init__(self, encoder: Any) -> None:  # noqa: ANN401
        self._encoder = encoder
        self.kept_features = RecentlyUsed[Any]()
        """By the digests of calls."""
        self._divides = True
        self.counters = FeatureCounters()

    def __call__(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        """Return the features from the cache, or compute them."""
        if self.kept_features.max_bytes <= 0:
            return self._compute((arguments, options))
        calls = _by_image(arguments, options) if self._divides else []
        if len(calls) < 2:
            return self._kept((arguments, options))
        try:
            return _joined([self._kept(call) for call in calls], packed=calls[0][0][0].ndim != _IMAGE_AXES)
        except _NotDivisibleError:
            self._divides = False
            return self._kept((arguments, options))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """Delegate everything else to the encoder."""
        return getattr(self._encoder, name)

    def _kept(self, call: Call) -> Any:  # noqa: ANN401
        key = _digest(call)
        if key is None:
            return self._compute(call)
        kept = self.kept_features.get(key)
        if kept is not None:
            self.counters.hits += 1
            return kept
        features = self._compute(call)
        arrays = [leaf for _, leaf in tree_flatten(features) if isinstance(leaf, mx.array)]
        mx.eval(arrays)
        self.kept_features.put(key, features, sum(array.nbytes for array in arrays))
        self.counters.size_bytes = self.kept_features.size_bytes
        return features

    def _compute(self, call: Call) -> Any:  # noqa: ANN401
        self.counters.computed += 1
        return self._encoder(*call[0], **call[1])


class _NotDivisibleError(Exception):
    """Features of single images cannot be put together to those of all."""


def _by_image(arguments: tuple[Any, ...], options: dict[str, Any]) -> list[Call]:
    """Return a call for each image; none where the arguments do not show where one ends.

    They do when the first is all there is, with an image in each row; and when it has the patches of all images and
    the second has, for each image, the lengths of its sides in patches.
    """
    others = [each for each in (*arguments[1:], *options.values()) if not isinstance(each, SETTINGS)]
    if not arguments or not isinstance(arguments[0], mx.array):
        return []
    pixels, rest = arguments[0], arguments[1:]
    if not others and pixels.ndim == _IMAGE_AXES:
        return [((pixels[row : row + 1], *rest), options) for row in range(len(pixels))]
    grid = others[0] if others else None
    if len(others) == 1 and rest and rest[0] is grid and isinstance(grid, mx.array) and grid.shape[1:] == (_SIDES,):
        ends = np.cumsum(np.array(grid).prod(axis=1)).tolist()
        if ends[-1] == len(pixels):
            starts = [0, *ends]
            return [
                ((pixels[starts[row] : ends[row]], grid[row : row + 1], *rest[1:]), options) for row in range(len(grid))
            ]
    return []


SETTINGS = (str, int, float, bool, mx.Dtype, type(None))
"""Types of arguments that say how to compute, not what."""

_IMAGE_AXES = 4
"""Images, channels, height and width, in whatever order after the first."""

_FEATURE_AXES = 2
"""Patches and their features."""

_SIDES = 3
"""Lengths of an image in patches: over time, of its height and of its width."""


def _joined(features: Sequence[Any], *, packed: bool) -> Any:  # noqa: ANN401
    """Return the features of images as the encoder would return those of all; packed ones are rows, one for a patch."""
    first = features[0]
    if isinstance(first, mx.array):
        if packed and first.ndim != _FEATURE_AXES:
            raise _NotDivisibleError
        return mx.concatenate(list(features), axis=0)
    if type(first) in (list, tuple):
        return type(first)([_joined(parts, packed=packed) for parts in zip(*features, strict=True)])
    if first is None:
        return None
    raise _NotDivisibleError


def _digest(call: Call) -> str | None:
    """Return a hash of an encoder's arguments; None where one of them has no content to tell it from others."""
    found = hashlib.sha256()
    for name, value in tree_flatten([list(call[0]), call[1]]):
        if isinstance(value, mx.array):
            content = np.array(mx.contiguous(value).reshape(-1).view(mx.uint8))
            found.update(f"{name}{value.dtype}{value.shape}".encode())
            found.update(content.data)
        elif isinstance(value, SETTINGS):
            found.update(f"{name}{value!r};".encode())
        else:
            return None
    return found.hexdigest()


def with_cache(model: Any) -> CachingEncoder | None:  # noqa: ANN401
    """Replace a model's vision encoder by a caching one and return it; None when no known attribute has one."""
    for holder, name in itertools.product((model, getattr(model, "thinker", None)), ENCODER_NAMES):
        encoder = getattr(holder, name, None)
        if encoder is not None and callable(encoder):
            caching = CachingEncoder(encoder)
            setattr(holder, name, caching)
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
        self.has_positions = hasattr(language, "_rope_deltas") or hasattr(language, "_position_ids")
        """Whether positions differ from the token count."""
        self.takes_positions = hasattr(language, "_rope_deltas") or not self.has_positions
        """Whether it takes those of each chunk of a prompt; otherwise it knows only those of the first one."""
        self.attends_ahead = getattr(getattr(language, "config", None), "use_bidirectional_attention", None) is True
        """Whether tokens of a prompt attend to later ones, whichever they are."""

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        """Compute the logits that follow the next token of every row.

        Args:
            tokens: Shape [B, 1].
            cache: Of ``make_cache``, or merged from several.

        Returns:
            Shape [B, 1, V].
        """
        *layers, extra = cache
        options = extra.step()
        if "rope_deltas" in options:
            self.remember(None, options["rope_deltas"])
        logits: mx.array = logits_of(self._language(tokens, cache=layers, **options))
        return logits

    def remember(self, positions: mx.array | None, offsets: mx.array | None) -> None:
        """Let the language model go on with the positions of one prompt, or of the rows of a batch.

        Many remember those of the last prompt that they saw, and use them for whichever comes next.
        """
        if self.has_positions:
            self._language._position_ids = positions
            self._language._rope_deltas = offsets

    def remembered(self) -> dict[str, mx.array]:
        """Return what the language model remembers of a prompt, by the names of its keyword arguments."""
        stated = {
            "position_ids": getattr(self._language, "_position_ids", None),
            "rope_deltas": getattr(self._language, "_rope_deltas", None),
        }
        return {name: value for name, value in stated.items() if value is not None}

    def make_cache(self) -> list[Any]:
        """Return an empty cache: the model's own layers and the position offsets."""
        return [*make_prompt_cache(self._language), RowPositions()]


def logits_of(output: Any) -> Any:  # noqa: ANN401
    """Return the logits of a language model's output, an array or an object."""
    return getattr(output, "logits", output)


def _concatenated(offsets: Sequence[mx.array | None]) -> mx.array | None:
    known = [each for each in offsets if each is not None]
    return mx.concatenate(known, axis=0) if known else None
