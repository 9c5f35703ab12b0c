"""Clone a model: copy it from the cache, after a pull if needed, into an editable workspace."""

import attrs

from mlxk.application.policy import require_closed
from mlxk.application.ports.model_cache import ModelCache, reserved_source
from mlxk.application.ports.model_directories import CopyMethod, ModelFiles, Provenance, WorkspaceDraft, WorkspaceStore
from mlxk.application.ports.system import Confirmation, Progress
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.pull_model import PullModel, PullRequest, PullStatus
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.errors import Advice, Remedy, UnhealthyModelError, ValidationError
from mlxk.domain.hub import check_revision
from mlxk.domain.models.integrity import listed
from mlxk.domain.models.model import HealthReport, ModelHandle, Origin, Workspace, is_part_of_model
from mlxk.domain.models.reference import ModelRef, ReferenceKind


@attrs.frozen
class CloneRequest:
    """Source, target and options of a clone."""

    reference: str
    """The reference of the source, as typed."""
    target: str | None = None
    """The target, as typed; None means the workspace home."""
    branch: str | None = None
    """A branch, tag or commit, equivalent to ``@`` in the reference."""
    check_health: bool = True
    """Whether to refuse an unhealthy source or copy."""
    force_resume: bool = False
    """Whether to complete a partial download without confirmation."""


@attrs.frozen
class CloneResult:
    """Result of a clone."""

    source: ModelHandle
    handle: ModelHandle | None
    """The new workspace; None when the user declined to complete the download."""
    provenance: Provenance
    methods: dict[CopyMethod, int]
    """Number of files by copy method."""
    report: HealthReport | None
    """Result of the health check; None without one."""
    workspace: Workspace | None = None


@attrs.frozen
class CloneModel:
    """Clones one model into a workspace."""

    resolve: ResolveModel
    pull: PullModel
    files: ModelFiles
    workspaces: WorkspaceStore
    cache: ModelCache
    describe: DescribeModel

    def __call__(self, request: CloneRequest, progress: Progress, confirmation: Confirmation) -> CloneResult:
        """Copy a model into a new workspace.

        Args:
            request: Source, target and options.
            progress: Receives the progress of the pull and of the copy.
            confirmation: Asked before a partial download is completed.

        Raises:
            ValidationError: The reference or the target is invalid.
            UnhealthyModelError: The source or the copy is not healthy; no workspace was made.
            MlxkError: The pull failed, see ``PullModel``; or the copy failed, see ``WorkspaceStore``.
        """
        ref = _parse(request)
        place = self.workspaces.place(request.target, ref.name.rstrip("/").rpartition("/")[2])
        source = self._local(ref)
        if source is None:
            unchecked = not (request.check_health or request.force_resume)
            pull_request = PullRequest(str(ref), force_resume=request.force_resume, accept_damaged=unchecked)
            pulled = self.pull(pull_request, progress, confirmation)
            source = pulled.handle
            if source is None or pulled.status is PullStatus.CANCELLED:
                partial = source or ModelHandle(pulled.name, "", Origin.CACHE)
                return CloneResult(partial, None, Provenance("clone"), {}, pulled.report)
        return self._clone(source, place, request, progress)

    def _local(self, ref: ModelRef) -> ModelHandle | None:
        """Return a source that needs no pull: a path, a built-in model, or a workspace of the home by its name."""
        if ref.kind is not ReferenceKind.NAME:
            return self.resolve(ref)
        return None if ref.revision else self.workspaces.find(ref.name)

    def _clone(self, source: ModelHandle, place: str, request: CloneRequest, progress: Progress) -> CloneResult:
        if place == source.directory or place.startswith(f"{source.directory}/"):
            raise ValidationError("target: it lies in the model to clone")
        require_closed(source, self.files)
        provenance = self._provenance(source)
        with reserved_source(self.cache, source, "cloning it", progress):
            if request.check_health:
                self._require_healthy(source, request)
            with self.workspaces.draft(place, provenance, keep_unfinished=True) as draft:
                methods = self._copy_files(source, draft, progress)
                copy = ModelHandle(draft.directory, draft.directory, Origin.WORKSPACE)
                report = self._require_healthy(copy, request) if request.check_health else None
                handle = draft.publish()
        workspace = self.workspaces.read(handle)
        return CloneResult(source, handle, provenance, methods, report, workspace)

    def _copy_files(self, source: ModelHandle, draft: WorkspaceDraft, progress: Progress) -> dict[CopyMethod, int]:
        """Copy the files of a model; return the number of files by copy method."""
        strays = self.describe.details(source).strays
        if strays:
            progress.note(f"Left out, as they do not belong to the model: {listed(strays)}")
        files = self.files.list(source.directory).files
        entries = [entry for entry in files if is_part_of_model(entry.path) and entry.path not in strays]
        methods = dict.fromkeys(CopyMethod, 0)
        done: dict[str, int] = {}
        progress.begin("Cloning", {entry.path: entry.size_bytes for entry in entries})
        try:
            for entry in entries:

                def on_bytes(count: int, path: str = entry.path) -> None:
                    done[path] = count
                    progress.advance(done)

                method = draft.copy(source.directory, entry.path, on_bytes)
                methods[method] += 1
                if method is CopyMethod.COPIED and methods[method] == 1:
                    progress.note("The file system cannot share the files, so they are copied and take space.")
        finally:
            progress.end()
        return methods

    def _require_healthy(self, handle: ModelHandle, request: CloneRequest) -> HealthReport:
        report = self.describe.health(handle)
        if not report.healthy:
            raise UnhealthyModelError(
                f"'{request.reference}' is not whole, so it was not cloned: {report.reason}",
                hint=Advice(Remedy.CLONE_UNCHECKED),
                fix=report.fix,
            )
        return report

    def _provenance(self, source: ModelHandle) -> Provenance:
        if source.origin is not Origin.WORKSPACE:
            return Provenance("clone", source.name, source.commit)
        record = self.workspaces.read(source)
        return Provenance("clone", record.source_repo, record.source_revision)


def _parse(request: CloneRequest) -> ModelRef:
    ref = ModelRef.parse(request.reference)
    if request.branch is None:
        return ref
    check_revision(request.branch)
    if ref.kind is not ReferenceKind.NAME:
        raise ValidationError(f"branch: '{ref.name}' has no branches", options=("branch",))
    if ref.revision not in {None, request.branch}:
        raise ValidationError(f"branch {request.branch} contradicts '@{ref.revision}'", options=("branch",))
    return attrs.evolve(ref, revision=request.branch)
