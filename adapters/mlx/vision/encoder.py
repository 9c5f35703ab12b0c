"""A model's vision encoder with a cache of image features, by content.

Features are cached for each image separately if the encoder's arguments show where each image ends. Images of several
prompts are computed together if the encoder's results are then the same.
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
"""Attributes of mlx-vlm's models with the vision encoder."""

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of an encoder."""


@attrs.define
class FeatureCounters:
    """Counters of one model's feature cache; written on the owner thread, readable from any."""

    hits: int = 0
    computed: int = 0
    """Images whose features were computed; prompts, if the encoder's arguments do not show where each image ends."""
    size_bytes: int = 0
    """Size of the cache."""


@attrs.define(eq=False)
class _Features:
    """Cached features of an image."""

    value: Any
    is_awaited: bool = False
    """Whether they were computed ahead and have not been used since."""


class CachingEncoder:
    """Wraps a vision encoder with a cache; used on the owner thread only.

    Features are cached by the content of the encoder's arguments, and separately for each image if the arguments show
    where each image ends: when an image is added to a conversation, only that one is computed.

    Args:
        encoder: The wrapped encoder.
    """

    def __init__(self, encoder: Any) -> None:  # noqa: ANN401
        self._encoder = encoder
        self.kept_features = RecentlyUsed[_Features]()
        """Features by ``_digest`` of the call."""
        self._divides = True
        """Whether features of single images can be concatenated to those of all."""
        self._joins: bool | None = None
        """Whether features are the same when several images are computed together; None until tried."""
        self._recording = False
        """Whether a call is to be recorded by ``calls_of`` instead of computed."""
        self.counters = FeatureCounters()

    def __call__(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        """Return the features from the cache, or compute them."""
        if self._recording:
            raise _RecordedCall((arguments, options))
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
        """Run some work up to its first encoder call; return that call, split into one for each image.

        The encoder computes nothing. The result is empty if the arguments do not show where each image ends, or if
        nothing is cached.
        """
        if self._joins is False or not self._divides or self.kept_features.max_bytes <= 0:
            return []
        self._recording = True
        try:
            work()
        except _RecordedCall as recorded:
            return _by_image(*recorded.call)
        except Exception:  # noqa: BLE001 - boundary: the prompt's own prefill raises the error again
            return []
        finally:
            self._recording = False
        return []

    def compute_ahead(self, calls: Sequence[Call]) -> None:
        """Compute and cache the features of images that are not cached, several together if the encoder allows it."""
        missing: dict[str, Call] = {}
        for call in calls:
            key = _digest(call)
            if key is not None and self.kept_features.get(key) is None:
                missing[key] = call
        for keys in _groups(missing):
            if self._joins is not False and len(keys) > 1:
                self._joins = self._compute_together(keys, [missing[key] for key in keys])

    def _compute_together(self, keys: Sequence[str], calls: Sequence[Call]) -> bool:
        """Compute and cache features; return False if images cannot be computed together, or not with equal results."""
        packed = calls[0][0][0].ndim != _IMAGE_AXES
        joined = [mx.concatenate(list(arrays), axis=0) for arrays in zip(*map(_arrays, calls), strict=True)]
        try:
            features = self._encoder(*joined, *calls[0][0][len(joined) :], **calls[0][1])
            parts = _divided(features, [len(call[0][0]) for call in calls], packed=packed)
        except Exception:  # noqa: BLE001 - boundary: encoders of any family; images are then computed one by one
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
    """Features of single images cannot be concatenated to those of all."""


class _RecordedCall(Exception):  # noqa: N818 - control flow, not an error
    """Ends the work of ``calls_of`` with the recorded call."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call


_MOST_TOGETHER = 1_200_000
"""Maximum number of array elements that are computed together: larger images use the machine well by themselves."""


def _groups(calls: Mapping[str, Call]) -> list[list[str]]:
    """Return the keys of calls in groups that can be computed together."""
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
    """Return the arrays of a call of ``_by_image``: the pixels and, for pixels in patches, the grid."""
    return [each for each in call[0][:2] if isinstance(each, mx.array)]


def _divided(features: Any, lengths: Sequence[int], *, packed: bool) -> list[Any]:  # noqa: ANN401
    """Split the features of several images, given each image's number of rows in the input; inverse of ``_joined``."""
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
    """Whether features are equal up to rounding."""
    first, second = ([leaf for _, leaf in tree_flatten(each) if isinstance(leaf, mx.array)] for each in (one, other))
    if [each.shape for each in first] != [each.shape for each in second]:
        return False
    return all(
        bool(mx.abs(a - b).max() <= _ROUNDING * mx.maximum(mx.abs(b).max(), 1e-6))
        for a, b in zip(first, second, strict=True)
        if a.size
    )


_ROUNDING = 0.02
"""Tolerance relative to the largest element: high for 32 bits, low for the 16 bits of a GPU."""


def _by_image(arguments: tuple[Any, ...], options: dict[str, Any]) -> list[Call]:
    """Split a call into one for each image; return an empty list if the arguments do not show where each image ends.

    Two forms do: the only array has one image in each row; or the first array has the patches of all images, and the
    second one is the grid, with the lengths of each image's sides in patches.
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
"""Types of arguments that are settings, not data."""

_IMAGE_AXES = 4
"""Axes of pixels: images first, then channels, height and width in any order."""

_FEATURE_AXES = 2
"""Axes of features: patches, dimensions."""

_SIDES = 3
"""Length of a row of the grid: time, height and width of an image, in patches."""


def _joined(features: Sequence[Any], *, packed: bool) -> Any:  # noqa: ANN401
    """Concatenate the features of images to the encoder's result for all; packed features have one row a patch."""
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
    """Return a hash of an encoder's arguments; None if one is neither an array nor a setting."""
    digest = hashlib.sha256()
    for name, value in tree_flatten([list(call[0]), call[1]]):
        if isinstance(value, mx.array):
            content = np.array(mx.contiguous(value).reshape(-1).view(mx.uint8))
            digest.update(f"{name}{value.dtype}{value.shape}".encode())
            digest.update(content.data)
        elif isinstance(value, SETTINGS):
            digest.update(f"{name}{value!r};".encode())
        else:
            return None
    return digest.hexdigest()


def with_cache(model: Any) -> CachingEncoder | None:  # noqa: ANN401
    """Replace a model's vision encoder by a caching one and return it; None if it is under no known attribute."""
    for holder, name in itertools.product((model, getattr(model, "thinker", None)), ENCODER_NAMES):
        encoder = getattr(holder, name, None)
        # In some models another of these names is a property for the encoder, which cannot be set.
        if callable(encoder) and not isinstance(getattr(type(holder), name, None), property):
            caching = CachingEncoder(encoder)
            setattr(holder, name, caching)
            return caching
    return None
