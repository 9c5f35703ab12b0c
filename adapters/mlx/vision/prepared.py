"""A cache of an image processor's results, by the content of the images.

Clients send the images of a conversation with every turn. If they are in the KV cache already, scaling them and cutting
them into patches takes longer than computing the rest of the prompt.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from PIL import Image

from mlxk.adapters.mlx.vision.encoder import SETTINGS
from mlxk.application.recently_used import RecentlyUsed
from mlxk.domain.generation.media import DecodedImage

_MARK = "mlxk"
"""Key of the content digest in ``Image.info``, which Pillow copies with an image."""

SHARE = 4
"""The cache may take one part in so many of the limit for features of images."""


def as_pillow(image: DecodedImage) -> Image.Image:
    """Return an image for a processor, marked with the digest of its content."""
    pillow = Image.frombytes("RGB", (image.width, image.height), image.pixels)
    pillow.info[_MARK] = image.digest
    return pillow


class PreparedImages:
    """A cache of an image processor's results; used on the owner thread only."""

    def __init__(self) -> None:
        self.kept = RecentlyUsed[Any]()
        """Results by ``_key`` of the arguments."""
        self.hits = 0

    def __call__(self, compute: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:  # noqa: ANN401
        """Return the processor's result for its arguments, from the cache if possible."""
        key = _key([*arguments, options]) if self.kept.max_bytes else None
        if key is None:
            return compute(*arguments, **options)
        result = self.kept.get(key)
        if result is not None:
            self.hits += 1
        else:
            result = compute(*arguments, **options)
            parts = dict(result) if isinstance(result, Mapping) else result
            sizes = [_nbytes(leaf) for _, leaf in tree_flatten(parts)]
            if None in sizes:
                return result
            self.kept.put(key, result, sum(filter(None, sizes)))
        return copy.copy(result)  # a copy, since processors remove entries from it


def with_prepared(processor: Any) -> PreparedImages | None:  # noqa: ANN401
    """Add a cache to a processor's image processor and return it; None if there is no callable image processor."""
    images = getattr(processor, "image_processor", None)
    kind = type(images)
    if images is None or not callable(images) or not hasattr(images, "__dict__"):
        return None
    prepared = PreparedImages()

    def call(self: Any, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        return prepared(functools.partial(kind.__call__, self), arguments, options)

    images.__class__ = type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
    return prepared


def _key(value: Any) -> str | None:  # noqa: ANN401
    """Return a cache key of arguments; None without images, or if one is neither a setting nor a marked image."""
    parts = list(_key_parts(value))
    return None if None in parts or not any("image:" in part for part in parts if part) else "".join(map(str, parts))


def _key_parts(value: Any) -> Iterator[str | None]:  # noqa: ANN401
    if isinstance(value, Image.Image):
        digest = value.info.get(_MARK)
        yield None if digest is None else f"image:{digest}{value.size}{value.mode};"
    elif isinstance(value, (list, tuple)):
        yield "["
        for each in value:
            yield from _key_parts(each)
        yield "]"
    elif isinstance(value, dict):
        for name, each in sorted(value.items(), key=lambda item: str(item[0])):
            yield f"{name}="
            yield from _key_parts(each)
    else:
        yield f"{value!r};" if isinstance(value, SETTINGS) else None


def _nbytes(leaf: Any) -> int | None:  # noqa: ANN401
    """Return the size of a leaf of a result; None if its type may be mutable."""
    if isinstance(leaf, mx.array):
        mx.eval(leaf)
    if isinstance(leaf, (mx.array, np.ndarray)):
        return int(leaf.nbytes)
    return 0 if isinstance(leaf, (*SETTINGS, np.generic)) else None


class WithoutTextOptions:
    """An image processor without text options: transformers' image processors refuse them, mlx-vlm passes them on.

    Args:
        wrapped: Image processor of transformers.
    """

    def __init__(self, wrapped: Any) -> None:  # noqa: ANN401
        self._wrapped = wrapped

    def __call__(self, images: Any, **options: Any) -> Any:  # noqa: ANN401
        """Process images."""
        return self._wrapped(images, **{name: value for name, value in options.items() if name != "padding"})

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """Delegate everything else."""
        return getattr(self._wrapped, name)
