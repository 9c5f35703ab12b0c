"""Reserving a cached model while an operation works on it, and reporting the process it has to wait for."""

import contextlib
from contextlib import AbstractContextManager

from mlxk.application.ports.model_cache import LockHolder, ModelCache
from mlxk.application.ports.system import Progress
from mlxk.domain.models.model import ModelHandle, Origin


def reserved(cache: ModelCache, name: str, activity: str, progress: Progress) -> AbstractContextManager[None]:
    """Lock a model of the cache for the length of a ``with`` block, waiting for other processes.

    Args:
        cache: The cache.
        name: ``org/name``; it need not be cached.
        activity: Shown to processes that wait, such as ``pulling it``.
        progress: Gets a note when this process has to wait.

    Raises:
        StorageError: The cache cannot be written to.
    """

    def waiting(holder: LockHolder) -> None:
        progress.note(f"Waiting for {holder}.")

    return cache.reserve(name, activity, waiting)


def reserved_source(
    cache: ModelCache, source: ModelHandle, activity: str, progress: Progress
) -> AbstractContextManager[None]:
    """Lock the source of a copy as ``reserved`` does; one outside the cache has no lock."""
    if source.origin is not Origin.CACHE:
        return contextlib.nullcontext()
    return reserved(cache, source.name, activity, progress)
