"""The vision encoder of a model, with a cache of what it makes of each image, by content.

Features are kept for each image by itself where the encoder's arguments show where one image ends. Images of several
prompts are computed together where an encoder makes the same of them so.
"""

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

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
    """Images whose features were computed; prompts, where an encoder's arguments do not show where one image ends."""
    size_bytes: int = 0
    """What is kept."""


@attrs.define(eq=False)
class _Features:
    """What an encoder made of an image."""

    value: Any
    is_awaited: bool = False
    """Whether it was computed before it was asked for, and has not been since."""


class CachingEncoder:
    """Wraps a vision encoder with a cache; used on the owner thread only.

    Features are kept by the content of what they are computed from, and for each image by itself where the arguments
    show where one image ends: so a conversation that gets another image has only that one computed.

    Args:
        encoder: The wrapped encoder.
    """

    def __init__(self, encoder: Any) -> None:  # noqa: ANN401
        self._encoder = encoder
        self.kept_features = RecentlyUsed[_Features]()
        """By the digests of calls."""
        self._divides = True
        self._joins: bool | None = None
        """Whether features are the same when several images are computed together; None until it was tried."""
        self._noting = False
        self.counters = FeatureCounters()

    def __call__(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        """Return the features from the cache, or compute them."""
        if self._noting:
            raise _NotedError((arguments, options))
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

    def calls_of(self, work: Callable[[], Any]) -> list[Call]:
        """Return the calls, one for each image, that some work begins with, without computing anything of it.

        None are returned where the arguments do not show where one image ends, or nothing is kept.
        """
        if self._joins is False or not self._divides or self.kept_features.max_bytes <= 0:
            return []
        self._noting = True
        try:
            work()
        except _NotedError as noted:
            return _by_image(*noted.call)
        except Exception:  # noqa: BLE001 - boundary: a prompt's own prefill reports what is wrong with it
            return []
        finally:
            self._noting = False
        return []

    def compute_ahead(self, calls: Sequence[Call]) -> None:
        """Compute and keep the features of several images together, where an encoder takes them so."""
        wanted: dict[str, Call] = {}
        for call in calls:
            key = _digest(call)
            if key is not None and self.kept_features.get(key) is None:
                wanted[key] = call
        for keys in _groups(wanted):
            if self._joins is not False and len(keys) > 1:
                self._joins = self._computed_together(keys, [wanted[key] for key in keys])

    def _computed_together(self, keys: Sequence[str], calls: Sequence[Call]) -> bool:
        """Compute and keep features; return whether the encoder makes the same of images together and alone."""
        packed = calls[0][0][0].ndim != _IMAGE_AXES
        joined = [mx.concatenate(list(arrays), axis=0) for arrays in zip(*map(_arrays, calls), strict=True)]
        try:
            features = self._encoder(*joined, *calls[0][0][len(joined) :], **calls[0][1])
            parts = _divided(features, [len(call[0][0]) for call in calls], packed=packed)
        except Exception:  # noqa: BLE001 - boundary: encoders of any family; images are computed one by one then
            return False
        if self._joins is None and not _are_close(parts[-1], self._encoder(*calls[-1][0], **calls[-1][1])):
            return False
        self.counters.computed += len(calls)
        for key, part in zip(keys, parts, strict=True):
            self._keep(key, _Features(part, is_awaited=True))
        return True

    def _kept(self, call: Call) -> Any:  # noqa: ANN401
        key = _digest(call)
        if key is None:
            return self._compute(call)
        kept = self.kept_features.get(key)
        if kept is not None:
            self.counters.hits += not kept.is_awaited
            kept.is_awaited = False
            return kept.value
        features = self._compute(call)
        self._keep(key, _Features(features))
        return features

    def _keep(self, key: str, features: "_Features") -> None:
        arrays = [leaf for _, leaf in tree_flatten(features.value) if isinstance(leaf, mx.array)]
        mx.eval(arrays)
        self.kept_features.put(key, features, sum(array.nbytes for array in arrays))
        self.counters.size_bytes = self.kept_features.size_bytes

    def _compute(self, call: Call) -> Any:  # noqa: ANN401
        self.counters.computed += 1
        return self._encoder(*call[0], **call[1])


class _NotDivisibleError(Exception):
    """Features of single images cannot be put together to those of all."""


class _NotedError(Exception):
    """A call was noted in place of being computed."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call


_MOST_TOGETHER = 1_200_000
"""Numbers of images that are computed together: larger images use the machine well by themselves."""


def _groups(calls: Mapping[str, Call]) -> list[list[str]]:
    """Return the keys of calls that can be made together."""
    groups: list[list[str]] = []
    open_groups: dict[str, tuple[list[str], int]] = {}
    for key, call in calls.items():
        arrays = _arrays(call)
        kind = repr([[(each.shape[1:], each.dtype) for each in arrays], call[0][len(arrays) :], call[1]])
        keys, size = open_groups.get(kind, ([], 0))
        if not keys or size + arrays[0].size > _MOST_TOGETHER:
            keys, size = [], 0
            groups.append(keys)
        keys.append(key)
        open_groups[kind] = keys, size + arrays[0].size
    return groups


def _arrays(call: Call) -> list[mx.array]:
    """Return the arrays of a call of ``_by_image``: the pixels, and the sides of the image where they are patches."""
    return [each for each in call[0][:2] if isinstance(each, mx.array)]


def _divided(features: Any, lengths: Sequence[int], *, packed: bool) -> list[Any]:  # noqa: ANN401
    """Return the features of each image, given the rows of each in what was computed; the inverse of ``_joined``."""
    if features is None:
        return [None] * len(lengths)
    if type(features) in (list, tuple):
        parts = [_divided(each, lengths, packed=packed) for each in features]
        return [type(features)(each) for each in zip(*parts, strict=True)] or [features] * len(lengths)
    total = sum(lengths)
    if not isinstance(features, mx.array) or (packed and features.ndim != _FEATURE_AXES):
        raise _NotDivisibleError
    ends = np.cumsum([length * len(features) for length in lengths])
    if any(ends % total) or (not packed and len(features) != total):
        raise _NotDivisibleError
    starts = [0, *(ends // total).tolist()]
    return [mx.contiguous(features[start:end]) for start, end in itertools.pairwise(starts)]


def _are_close(one: Any, other: Any) -> bool:  # noqa: ANN401
    """Whether features are the same but for how sums are rounded."""
    first, second = ([leaf for _, leaf in tree_flatten(each) if isinstance(leaf, mx.array)] for each in (one, other))
    if [each.shape for each in first] != [each.shape for each in second]:
        return False
    return all(
        bool(mx.abs(a - b).max() <= _ROUNDING * mx.maximum(mx.abs(b).max(), 1e-6))
        for a, b in zip(first, second, strict=True)
        if a.size
    )


_ROUNDING = 0.02
"""Of the largest number: much for 32 bits, little for the 16 bits that a GPU computes with."""


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
        # Some models have the encoder under one more name, as a property that cannot be set.
        if callable(encoder) and not isinstance(getattr(type(holder), name, None), property):
            caching = CachingEncoder(encoder)
            setattr(holder, name, caching)
            return caching
    return None
