"""The vision-encoder cache: features of images that were encoded before.

A vision encoder computes features of pixels, at the cost of hundreds of tokens. Its outputs for the images of a prompt
are kept and reused when another prompt contains the same images in the same order.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

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


def install(model: Any) -> CachingEncoder | None:  # noqa: ANN401
    """Replace a model's vision encoder by a caching one and return it; None when no known attribute has one."""
    for name in ENCODER_NAMES:
        encoder = getattr(model, name, None)
        if encoder is not None and callable(encoder):
            caching = CachingEncoder(encoder)
            setattr(model, name, caching)
            return caching
    return None
