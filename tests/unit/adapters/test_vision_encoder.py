"""The cache of a vision encoder: images are computed together only where that gives the features of each alone."""

from collections.abc import Callable

import mlx.core as mx
import pytest

from mlxk.adapters.mlx.vision.encoder import CachingEncoder

pytestmark = pytest.mark.mlx
Encoder = Callable[[mx.array], mx.array]

IMAGES = [mx.random.normal((1, 3, 4, 4), key=mx.random.key(number)) for number in range(3)]


def means(pixels: mx.array) -> mx.array:
    """Return one row of features for each image, whatever else is computed with it."""
    return mx.mean(pixels, axis=(2, 3))


def shifted(pixels: mx.array) -> mx.array:
    """Return features that depend on the other images of the call."""
    return means(pixels) + len(pixels)


def widened(pixels: mx.array) -> mx.array:
    """Return features whose width depends on the other images of the call."""
    return mx.concatenate([means(pixels)] * len(pixels), axis=1)


def flattened(pixels: mx.array) -> mx.array:
    """Return features that cannot be divided into those of each image."""
    return means(pixels).reshape(-1)[:4]


def failing(pixels: mx.array) -> mx.array:
    """Take one image at a time."""
    if len(pixels) > 1:
        raise ValueError("one image at a time")
    return means(pixels)


@pytest.mark.parametrize(
    ("encoder", "together"), [(means, True), (shifted, False), (widened, False), (flattened, False), (failing, False)]
)
def test_images_are_computed_ahead_only_where_it_changes_nothing(encoder: Encoder, together: bool) -> None:
    alone = [encoder(image) for image in IMAGES]
    cached = CachingEncoder(encoder)
    cached.kept_features.max_bytes = 2**20
    cached.compute_ahead([((image,), {}) for image in IMAGES])
    assert cached.counters.computed == (len(IMAGES) if together else 0)
    for image, features in zip(IMAGES, alone, strict=True):
        assert mx.allclose(cached(image), features, rtol=1e-5)
    assert (cached.counters.computed, cached.counters.hits) == (3, 0)
    assert mx.allclose(cached(IMAGES[1]), alone[1], rtol=1e-5)
    assert cached.counters.hits == 1
