"""Inspect the models of this machine: list them, show one, and check their health."""

from collections.abc import Callable

import attrs

from mlxk.application.ports.model_directories import ContentVerifier, VerificationResult, WorkspaceStore
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.errors import Advice, ModelNotFoundError, Remedy, StorageError, ValidationError
from mlxk.domain.models.integrity import listed
from mlxk.domain.models.model import (
    HealthReport,
    ModelDescription,
    ModelDetails,
    ModelHandle,
    Origin,
    Workspace,
    healthy,
    unhealthy,
)
from mlxk.domain.models.reference import ModelRef


@attrs.frozen
class ListModels:
    """Lists models of every framework, complete or not; entrypoints choose what to show."""

    resolve: ResolveModel
    describe: DescribeModel

    def __call__(self, pattern: str | None = None) -> tuple[ModelDescription, ...]:
        """Return the descriptions of the models that a pattern selects, sorted by name.

        A model that another process removes meanwhile is left out.

        Args:
            pattern: See ``ResolveModel.matching``.

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


@attrs.frozen
class ShowModel:
    """Resolves a reference and returns the details of its revision, health included."""

    resolve: ResolveModel
    describe: DescribeModel
    workspaces: WorkspaceStore

    def __call__(self, reference: str | ModelRef, *, recalculate_hash: bool = False) -> ModelDetails:
        """Return the details of the model that a reference means.

        Args:
            reference: The model, optionally with a revision.
            recalculate_hash: Whether to first update the recorded content hash of a managed workspace to its present
                files, which makes it clean.

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


Progress = Callable[[ModelHandle, int, int], None]
"""Callback with the model, the bytes of it read so far, and its total bytes."""


@attrs.frozen
class HealthEntry:
    """The health of one model."""

    handle: ModelHandle
    report: HealthReport
    workspace: Workspace | None
    """Provenance and state, for workspaces only."""
    notes: tuple[str, ...] = ()
    """Problems of a healthy model, such as defects of its chat template, a sentence each."""


@attrs.frozen
class CheckHealth:
    """Checks one model or all of them."""

    resolve: ResolveModel
    describe: DescribeModel
    workspaces: WorkspaceStore
    verifier: ContentVerifier

    def __call__(
        self, reference: str | None = None, deep: bool = False, progress: Progress | None = None
    ) -> tuple[HealthEntry, ...]:
        """Return the health of the model that a reference means, or of all models, sorted by name.

        Args:
            reference: A model, optionally with a revision; None means all models, without those that another process
                removes meanwhile.
            deep: Whether to compare the content of every file with its recorded digest, offline.
            progress: Callback with the bytes read by a deep check.

        Raises:
            ModelNotFoundError: No model of this machine matches the reference.
            AmbiguousModelError: The reference matches several models.
            RevisionNotFoundError: The model is cached but the revision is not.
            StorageError: The cache exists but cannot be read.
        """
        if reference is not None:
            return (self._entry(self.resolve(reference), deep, progress),)
        entries = []
        for handle in self.resolve.matching():
            try:
                entries.append(self._entry(handle, deep, progress))
            except ModelNotFoundError:
                continue
        return tuple(entries)

    def _entry(self, handle: ModelHandle, deep: bool, progress: Progress | None) -> HealthEntry:
        report, notes = self.describe.checked(handle)
        if deep:
            report = self._check_content(handle, report, progress)
        workspace = self.workspaces.read(handle) if handle.origin is Origin.WORKSPACE else None
        return HealthEntry(handle, report, workspace, notes if report.healthy else ())

    def _check_content(self, handle: ModelHandle, report: HealthReport, progress: Progress | None) -> HealthReport:
        def on_progress(done: int, total: int) -> None:
            if progress:
                progress(handle, done, total)

        try:
            return _merged(report, self.verifier.verify(handle, on_progress))
        except StorageError as error:
            return report if not report.healthy else unhealthy(f"Content cannot be read: {error.message}")


def _merged(report: HealthReport, result: VerificationResult) -> HealthReport:
    """Combine the report of the quick check, whose reason comes first, with the result of the deep check."""
    damaged = f"Content differs from its digest: {listed(result.damaged)}"
    if not report.healthy:
        if not result.damaged:
            return report
        files = tuple({*report.files, *result.damaged})
        return unhealthy(f"{report.reason}; {damaged}", files, report.missing_bytes, report.fix)
    if result.damaged:
        return unhealthy(damaged, result.damaged)
    if not result.checked:
        return healthy(f"{report.reason}; no digests recorded, content not compared")
    without = f", {len(result.unverifiable)} without a digest" if result.unverifiable else ""
    return healthy(f"{report.reason}; content of {result.checked} files verified{without}")
