"""List the models on this machine, from every origin."""

import attrs

from mlxk.application.ports.model_cache import ModelCache
from mlxk.application.ports.model_source import ModelSource
from mlxk.application.ports.workspace_store import WorkspaceStore
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.domain.errors import ModelNotFoundError
from mlxk.domain.models.model import ModelDescription, ModelHandle
from mlxk.domain.models.reference import fits_pattern, is_path, is_pattern


@attrs.frozen
class ListModels:
    """Lists models of every framework, complete or not; entrypoints choose what to show."""

    cache: ModelCache
    workspaces: WorkspaceStore
    built_in: ModelSource
    describe: DescribeModel

    def __call__(self, pattern: str | None = None) -> tuple[ModelDescription, ...]:
        """Return the descriptions of the models a pattern selects, sorted by name.

        A model that another process removes meanwhile is left out.

        Args:
            pattern: A part of the name in any case; or a pattern of names such as ``tiny*``; or an explicit path, which
                selects workspaces only: the one at it, those in it, or those whose path begins with it. None selects
                everything, a blank one nothing.

        Raises:
            StorageError: The cache or the directory of the pattern exists but cannot be read.
        """
        descriptions = []
        for handle in self.handles(pattern):
            try:
                descriptions.append(self.describe(handle))
            except ModelNotFoundError:
                continue
        return tuple(descriptions)

    def handles(self, pattern: str | None = None) -> tuple[ModelHandle, ...]:
        """Return the models a pattern selects, sorted by name, without reading their files.

        Args:
            pattern: As for listing.

        Raises:
            StorageError: The cache or the directory of the pattern exists but cannot be read.
        """
        wanted = pattern.strip() if pattern is not None else None
        if wanted is not None and is_path(wanted):
            found = list(self.workspaces.below(wanted))
        else:
            found = [] if wanted == "" else self._named(wanted or "")
        return tuple(sorted(found, key=lambda handle: (handle.name, handle.directory)))

    def _named(self, wanted: str) -> list[ModelHandle]:
        sources: tuple[ModelSource, ...] = (self.built_in, self.workspaces, self.cache)
        found = (source.find(name) for source in sources for name in source.names() if _fits(name, wanted))
        return [handle for handle in found if handle is not None]


def _fits(name: str, wanted: str) -> bool:
    return fits_pattern(name, wanted) if is_pattern(wanted) else wanted.lower() in name.lower()
