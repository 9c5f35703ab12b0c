"""Show everything about one model."""

import attrs

from mlxk.application.ports.model_directories import WorkspaceStore
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.errors import Advice, Remedy, ValidationError
from mlxk.domain.models.model import ModelDetails, ModelHandle, Origin
from mlxk.domain.models.reference import ModelRef


@attrs.frozen
class ShowModel:
    """Resolves a reference and returns the details of its revision, health included."""

    resolve: ResolveModel
    describe: DescribeModel
    workspaces: WorkspaceStore

    def __call__(self, reference: str | ModelRef, *, recalculate_hash: bool = False) -> ModelDetails:
        """Return the details of the model a reference means.

        Args:
            reference: The model, with a revision if that one is meant.
            recalculate_hash: First compute and record the content hash of a managed workspace, which makes it clean.

        Raises:
            ValidationError: A hash was requested for a model that is not a managed workspace.
            ModelNotFoundError, AmbiguousModelError, RevisionNotFoundError: The reference means no single model.
            StorageError: The record cannot be written.
        """
        handle = self.resolve(reference)
        if recalculate_hash:
            self._recalculate(handle)
        return self.describe.details(handle)

    def _recalculate(self, handle: ModelHandle) -> None:
        if handle.origin is not Origin.WORKSPACE or not self.workspaces.read(handle).managed:
            raise ValidationError(
                f"'{handle.display_name or handle.name}' is not a managed workspace, so it has no hash to record",
                hint=Advice(Remedy.MAKE_MANAGED),
            )
        self.workspaces.recalculate(handle)
