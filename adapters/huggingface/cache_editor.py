"""Changing the hub cache: reservations, who else works on a model, removal."""

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager

from mlxk.adapters.huggingface import removal
from mlxk.adapters.huggingface.layout import ModelFolder
from mlxk.adapters.huggingface.locks import held_locks, reserve_model
from mlxk.application.ports.cache_editor import CacheEditor, LockHolder, Removal


class HuggingFaceCacheEditor(CacheEditor):
    """Writes to the ``hub`` directory of the Hugging Face cache.

    Args:
        root: The ``hub`` directory; it need not exist.
    """

    def __init__(self, root: str) -> None:
        self._root = os.path.abspath(root)

    def reserve(
        self, name: str, activity: str, wait: Callable[[LockHolder], None] | None = None
    ) -> AbstractContextManager[None]:
        """Keep other processes of ours off a model for the length of a ``with`` block."""
        return reserve_model(self._folder(name), activity, wait)

    def holders(self, name: str) -> tuple[LockHolder, ...]:
        """Return who works on files of a model right now, ourselves excepted."""
        return held_locks(self._folder(name))

    def free_bytes(self) -> int | None:
        """Return how much the disk of the cache can still take."""
        place = self._root
        while not os.path.isdir(place) and place != os.path.dirname(place):
            place = os.path.dirname(place)
        try:
            return shutil.disk_usage(place).free
        except OSError:
            return None

    def plan_removal(self, name: str, revision: str | None = None) -> Removal | None:
        """Return what a removal would take away, or None when the model is not cached."""
        return removal.plan_removal(self._folder(name), revision)

    def remove(self, planned: Removal) -> None:
        """Take away what was planned."""
        removal.remove(self._folder(planned.name), planned)

    def _folder(self, name: str) -> ModelFolder:
        return ModelFolder(self._root, name)
