"""List the models on this machine, from every origin."""

import attrs

from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.errors import ModelNotFoundError
from mlxk.domain.models.model import ModelDescription


@attrs.frozen
class ListModels:
    """Lists models of every framework, complete or not; entrypoints choose what to show."""

    resolve: ResolveModel
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
        for handle in self.resolve.matching(pattern):
            try:
                descriptions.append(self.describe(handle))
            except ModelNotFoundError:
                continue
        return tuple(descriptions)
