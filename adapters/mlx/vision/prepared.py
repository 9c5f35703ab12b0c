"""What a model's image processor makes of images, kept by their content.

Clients send the images of a conversation with every turn. Scaling them and cutting them into patches takes longer than
reading a question where the model has them in its KV cache already.
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
"""Entry of an image's notes, which Pillow hands on to copies."""

SHARE = 4
"""The pixels may take this part of what the features of images may."""


def as_pillow(image: DecodedImage) -> Image.Image:
    """Return an image for a processor, marked by its content."""
    copy = Image.frombytes("RGB", (image.width, image.height), image.pixels)
    copy.info[_MARK] = image.digest
    return copy


class PreparedImages:
    """Results of an image processor; used on the owner thread only."""

    def __init__(self) -> None:
        self.kept = RecentlyUsed[Any]()
        """By their arguments."""
        self.hits = 0

    def __call__(self, compute: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:  # noqa: ANN401
        """Return what the processor makes of its arguments."""
        key = _key([*arguments, options]) if self.kept.max_bytes else None
        if key is None:
            return compute(*arguments, **options)
        found = self.kept.get(key)
        if found is not None:
            self.hits += 1
        else:
            found = compute(*arguments, **options)
            parts = dict(found) if isinstance(found, Mapping) else found
            sizes = [_nbytes(leaf) for _, leaf in tree_flatten(parts)]
            if None in sizes:
                return found
            self.kept.put(key, found, sum(filter(None, sizes)))
        return copy.copy(found)  # processors take entries out of it


def with_prepared(processor: Any) -> PreparedImages | None:  # noqa: ANN401
    """Have a processor keep what it makes of images; None where it has no image processor that can be called."""
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
    """Return what distinguishes arguments; None where one of them is neither a setting nor a marked image."""
    found = list(_marks(value))
    return None if None in found or not any("image:" in each for each in found if each) else "".join(map(str, found))


def _marks(value: Any) -> Iterator[str | None]:  # noqa: ANN401
    if isinstance(value, Image.Image):
        digest = value.info.get(_MARK)
        yield None if digest is None else f"image:{digest}{value.size}{value.mode};"
    elif isinstance(value, (list, tuple)):
        yield "["
        for each in value:
            yield from _marks(each)
        yield "]"
    elif isinstance(value, dict):
        for name, each in sorted(value.items(), key=lambda item: str(item[0])):
            yield f"{name}="
            yield from _marks(each)
    else:
        yield f"{value!r};" if isinstance(value, SETTINGS) else None


def _nbytes(leaf: Any) -> int | None:  # noqa: ANN401
    """Return the size of a part of a result; None for one that might change."""
    if isinstance(leaf, mx.array):
        mx.eval(leaf)
    if isinstance(leaf, (mx.array, np.ndarray)):
        return int(leaf.nbytes)
    return 0 if isinstance(leaf, (*SETTINGS, np.generic)) else None


class WithoutTextOptions:
    """Drops the options of the text, which processors of transformers refuse and mlx-vlm's pass on.

    Args:
        wrapped: Of transformers.
    """

    def __init__(self, wrapped: Any) -> None:  # noqa: ANN401
        self._wrapped = wrapped

    def __call__(self, images: Any, **options: Any) -> Any:  # noqa: ANN401
        """Return what it makes of images."""
        return self._wrapped(images, **{name: value for name, value in options.items() if name != "padding"})

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """Delegate everything else."""
        return getattr(self._wrapped, name)
