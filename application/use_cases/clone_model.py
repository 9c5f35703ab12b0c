"""Clone a model: an editable copy of it in a plain directory, from the cache where it is there, else through a pull."""

import attrs

from mlxk.application.cache_lock import reserved_source
from mlxk.application.ports.confirmation import Confirmation
from mlxk.application.ports.model_cache import ModelCache
from mlxk.application.ports.model_files import ModelFiles
from mlxk.application.ports.progress import Progress
from mlxk.application.ports.workspace_store import CopyMethod, Provenance, WorkspaceDraft, WorkspaceStore
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.pull_model import PullModel, PullRequest, PullStatus
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.download import check_revision
from mlxk.domain.errors import Advice, Remedy, UnhealthyModelError, ValidationError
from mlxk.domain.models.model import HealthReport, ModelHandle, Origin, Workspace, is_part_of_model
from mlxk.domain.models.reference import ModelRef, ReferenceKind


@attrs.frozen
class CloneRequest:
    """What to clone, where to and how."""

    reference: str
    """What the user typed."""
    target: str | None = None
    """What the user typed; None means the workspace home."""
    branch: str | None = None
    """A branch, tag or commit, as if it stood after ``@``."""
    check_health: bool = True
    """Whether a copy that is not whole is refused."""
    force_resume: bool = False
    """Whether a partial model in the cache is completed without asking."""


@attrs.frozen
class CloneResult:
    """What a clone did."""

    source: ModelHandle
    handle: ModelHandle | None
    """The workspace; None when the user chose not to complete the model in the cache."""
    provenance: Provenance
    methods: dict[CopyMethod, int]
    """How many files came which way."""
    report: HealthReport | None
    """What the check found; None when none was asked for."""
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
        """Make a workspace of a model.

        Args:
            request: What, where to and how.
            progress: Told how far the pull and the copy are.
            confirmation: Asked before a partial model in the cache is completed.

        Raises:
            ValidationError: The reference or the target is none.
            UnhealthyModelError: The copy is not whole; nothing was made.
            MlxkError: The model cannot be had, see ``PullModel``; or the disk refuses, see ``WorkspaceStore``.
        """
        ref = _parse(request)
        place = self.workspaces.place(request.target, ref.name.rstrip("/").rpartition("/")[2])
        source = self._local(ref)
        if source is None:
            as_it_is = not (request.check_health or request.force_resume)
            wanted = PullRequest(str(ref), force_resume=request.force_resume, take_damaged=as_it_is)
            pulled = self.pull(wanted, progress, confirmation)
            source = pulled.handle
            if source is None or pulled.status is PullStatus.CANCELLED:
                kept = source or ModelHandle(pulled.name, "", Origin.CACHE)
                return CloneResult(kept, None, Provenance("clone"), {}, pulled.report)
        return self._clone(source, place, request, progress)

    def _local(self, ref: ModelRef) -> ModelHandle | None:
        """Return a source that no hub has: a path, a workspace of the home by its exact name, a built-in."""
        if ref.kind is not ReferenceKind.NAME:
            return self.resolve(ref)
        return None if ref.revision else self.workspaces.find(ref.name)

    def _clone(self, source: ModelHandle, place: str, request: CloneRequest, progress: Progress) -> CloneResult:
        if place == source.directory or place.startswith(f"{source.directory}/"):
            raise ValidationError("target: it lies in the model that is to be cloned")
        provenance = self._provenance(source)
        with reserved_source(self.cache, source, "cloning it", progress):
            if request.check_health:
                self._checked(source, request)  # before anything is copied
            with self.workspaces.draft(place, provenance, keep_unfinished=True) as draft:
                methods = self._fill(draft, source, progress)
                copy = ModelHandle(draft.directory, draft.directory, Origin.WORKSPACE)
                report = self._checked(copy, request) if request.check_health else None
                handle = draft.publish()
        workspace = self.workspaces.read(handle)
        return CloneResult(source, handle, provenance, methods, report, workspace)

    def _fill(self, draft: WorkspaceDraft, source: ModelHandle, progress: Progress) -> dict[CopyMethod, int]:
        entries = [entry for entry in self.files.list(source.directory).files if is_part_of_model(entry.path)]
        methods = dict.fromkeys(CopyMethod, 0)
        done: dict[str, int] = {}
        progress.begin("Cloning", {entry.path: entry.size_bytes for entry in entries})
        try:
            for entry in entries:

                def tell(count: int, path: str = entry.path) -> None:
                    done[path] = count
                    progress.advance(done)

                method = draft.take(source.directory, entry.path, tell)
                methods[method] += 1
                if method is CopyMethod.COPIED and methods[method] == 1:
                    progress.note("The file system cannot share the files, so they are copied and take space.")
        finally:
            progress.end()
        return methods

    def _checked(self, handle: ModelHandle, request: CloneRequest) -> HealthReport:
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
