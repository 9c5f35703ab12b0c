"""Remembering what a vision tower saw, so that the same images are not looked at twice.

A tower is the part of a model that turns pixels into features; it costs as much as hundreds of tokens. What it returned
for the images of one prompt is kept, and found again when another prompt shows the same images in the same order.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

TOWERS = ("vision_tower", "vision_model", "vision_encoder", "visual")
"""Names under which models of mlx-vlm keep their tower."""

MAX_BYTES = 512 * 1024 * 1024
"""What is remembered of one model."""


class RememberingTower:
    """Stands in for a tower; used on the owner thread only.

    Args:
        tower: The tower.
        max_bytes: What may be remembered; the least recently used goes first.
    """

    def __init__(self, tower: Any, max_bytes: int = MAX_BYTES) -> None:  # noqa: ANN401
        self._tower = tower
        self._max_bytes = max_bytes
        self._seen: OrderedDict[tuple[str, int], tuple[Any, int]] = OrderedDict()
        self._bytes = 0
        self._shown: str | None = None
        self._calls = 0
        self.looked = 0
        """How often the tower itself had to look."""

    @contextlib.contextmanager
    def showing(self, images: str) -> Iterator[None]:
        """Name the images that the tower is shown inside the block.

        Args:
            images: A text that no other images have.
        """
        self._shown, self._calls = images, 0
        try:
            yield
        finally:
            self._shown = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        """Look, or remember."""
        if self._shown is None:
            return self._look(arguments, options)
        key = (self._shown, self._calls)
        self._calls += 1
        if key not in self._seen:
            self._keep(key, self._look(arguments, options))
        self._seen.move_to_end(key)
        found = self._seen[key][0]
        self._shrink()
        return found

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """Everything else is the tower's own."""
        return getattr(self._tower, name)

    def _look(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:  # noqa: ANN401
        self.looked += 1
        return self._tower(*arguments, **options)

    def _keep(self, key: tuple[str, int], features: Any) -> None:  # noqa: ANN401
        import mlx.core as mx
        from mlx.utils import tree_flatten

        arrays = [leaf for _, leaf in tree_flatten(features) if isinstance(leaf, mx.array)]
        mx.eval(arrays)
        size = sum(array.nbytes for array in arrays)
        self._seen[key] = (features, size)
        self._bytes += size

    def _shrink(self) -> None:
        while self._bytes > self._max_bytes and self._seen:
            _, (_, size) = self._seen.popitem(last=False)
            self._bytes -= size


def install(model: Any) -> RememberingTower | None:  # noqa: ANN401
    """Put a remembering tower in place of a model's own; return it, or None when the model has none that we know."""
    for name in TOWERS:
        tower = getattr(model, name, None)
        if tower is not None and callable(tower):
            remembering = RememberingTower(tower)
            setattr(model, name, remembering)
            return remembering
    return None
