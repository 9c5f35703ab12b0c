"""Keeping other processes of ours off a cached model while it is worked on; who has to wait is told for whom."""

import contextlib
from contextlib import AbstractContextManager

from mlxk.application.ports.cache_editor import CacheEditor, LockHolder
from mlxk.application.ports.progress import Progress
from mlxk.domain.models.model import ModelHandle, Origin


def reserved(editor: CacheEditor, name: str, activity: str, progress: Progress) -> AbstractContextManager[None]:
    """Reserve a model of the cache for the length of a ``with`` block, waiting for others; see ``CacheEditor``.

    Args:
        editor: Knows who works on the cache.
        name: ``org/name``; it need not be cached.
        activity: What will be done, for those who have to wait.
        progress: Told for whom this one has to wait.

    Raises:
        StorageError: The cache cannot be written to.
    """

    def waiting(holder: LockHolder) -> None:
        progress.note(f"Waiting for {holder}.")

    return editor.reserve(name, activity, waiting)


def reserved_source(
    editor: CacheEditor, source: ModelHandle, activity: str, progress: Progress
) -> AbstractContextManager[None]:
    """Reserve a model that is read; one that is not in the cache is left to its owner. See ``reserved``."""
    if source.origin is not Origin.CACHE:
        return contextlib.nullcontext()
    return reserved(editor, source.name, activity, progress)
