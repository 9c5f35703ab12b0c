"""Pull a model: download it from the hub into the cache, verify it, and skip files that are present already."""

import enum
from collections.abc import Callable

import attrs

from mlxk.application.ports.hub import ModelHub
from mlxk.application.ports.model_cache import ModelCache, ModelSource, reserved
from mlxk.application.ports.system import Confirmation, Progress
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.resolve_model import close_names, without_revisions
from mlxk.domain.errors import (
    Advice,
    AmbiguousModelError,
    ModelNotFoundError,
    NetworkError,
    Remedy,
    RequiresConfirmationError,
    RevisionNotFoundError,
    StorageError,
    ValidationError,
)
from mlxk.domain.hub import (
    DownloadPlan,
    RemoteModel,
    abbreviates,
    check_revision,
    is_commit,
    plan_download,
)
from mlxk.domain.models.model import Framework, HealthReport, ModelHandle
from mlxk.domain.models.reference import BUILT_IN_NAMES, ModelRef, ReferenceKind, check_name
from mlxk.domain.text import in_one_unit

SPARE_BYTES = 64 * 1024 * 1024
"""Free space that a download must leave on the disk."""


class PullStatus(enum.Enum):
    """How a pull ended."""

    SUCCESS = "success"
    ALREADY_EXISTS = "already_exists"
    DRY_RUN = "dry_run"
    CANCELLED = "cancelled"


def _ignore_plan(_: DownloadPlan) -> None:
    return


@attrs.frozen
class PullRequest:
    """Reference and options of a pull."""

    reference: str
    """As typed."""
    force_resume: bool = False
    """Whether to complete a partial or damaged model without confirmation."""
    dry_run: bool = False
    """Whether to report the plan only."""
    accept_damaged: bool = False
    """Whether to accept a cached snapshot without a check of its health."""
    planned: Callable[[DownloadPlan], None] = attrs.field(default=_ignore_plan, eq=False)
    """Callback with the plan of a download before it begins."""


@attrs.frozen
class PullResult:
    """Result of a pull."""

    name: str
    """``org/name``."""
    status: PullStatus
    expanded: bool = False
    """Whether the owner was added to the name."""
    handle: ModelHandle | None = None
    """The cached model; None when it is not cached."""
    plan: DownloadPlan | None = None
    """The files of the download; None when nothing was to be downloaded."""
    missing_bytes: int = 0
    """Bytes of the plan that were not on the disk before."""
    report: HealthReport | None = None
    """Result of the health check; None without one."""
    framework: Framework | None = None
    """Format of the downloaded weights; None without a download."""

    @property
    def warning(self) -> str | None:
        """A warning for the user; None when there is none."""
        return None if self.plan is None or self.framework is Framework.MLX else _warning(self.plan)


@attrs.frozen
class PullModel:
    """Pulls one model."""

    cache: ModelCache
    built_in: ModelSource
    hub: ModelHub
    describe: DescribeModel
    default_owner: str
    """The hub owner added to a name without one."""

    def __call__(self, request: PullRequest, progress: Progress, confirmation: Confirmation) -> PullResult:
        """Download a model into the cache.

        The head of a named branch is looked up on the hub and downloaded. Without a revision, or with a commit, a
        healthy cached model is returned without a request to the hub.

        Args:
            request: Reference and options.
            progress: Receives the progress of the download.
            confirmation: Asked before a partial or damaged model is completed.

        Raises:
            ValidationError: The reference is not the name of a model on the hub.
            AmbiguousModelError: A bare name matches several cached models.
            RequiresConfirmationError: The model is partial or damaged, and there is no terminal for a confirmation.
            MlxkError: The download failed; see ``ModelHub``.
        """
        ref = _parse(request.reference)
        if ref.kind is ReferenceKind.BUILT_IN:
            return PullResult(ref.name, PullStatus.ALREADY_EXISTS, handle=self.built_in.find(ref.name))
        name = self._full_name(ref.name)
        result = PullResult(name, PullStatus.DRY_RUN, expanded=name != ref.name)
        if request.dry_run:
            plan = plan_download(self.hub.with_tensors(self._on_hub(name, ref.revision)))
            return attrs.evolve(result, name=plan.model.name, plan=plan, missing_bytes=self.hub.missing_bytes(plan))
        while True:
            with reserved(self.cache, result.name, "pulling it", progress):
                outcome = self._pull(result, ref.revision, request, progress, confirmation)
            if isinstance(outcome, PullResult):
                return outcome
            result = attrs.evolve(result, name=outcome)

    def _pull(
        self,
        result: PullResult,
        revision: str | None,
        request: PullRequest,
        progress: Progress,
        confirmation: Confirmation,
    ) -> PullResult | str:
        """Download the missing files; when the hub spells the name differently, only return its spelling.

        The caller then locks the model under that name and calls again.
        """
        present, report = self._present(result.name, revision)
        healthy = report is not None and report.healthy
        unchanged = attrs.evolve(result, status=PullStatus.ALREADY_EXISTS, handle=present, report=report)
        if present and _is_sufficient(present, healthy, revision, request):
            return unchanged
        if report and not healthy and not self._may_resume(result.name, report, request, confirmation):
            return attrs.evolve(unchanged, status=PullStatus.CANCELLED)
        try:
            plan = plan_download(self._on_hub(result.name, revision))
        except NetworkError as error:
            if not healthy:
                raise
            progress.note(f"{error.message}; what is in the cache is taken as it is.")
            return unchanged
        if plan.model.name != result.name:
            return plan.model.name
        listed = present is not None and present.revision == plan.model.commit
        return unchanged if healthy and listed else self._fetch(result, plan, request, progress, verify_present=listed)

    def _on_hub(self, name: str, revision: str | None) -> RemoteModel:
        """Return the model on the hub; the error for a missing one suggests cached models with similar names."""
        try:
            return self.hub.describe(name, revision)
        except ModelNotFoundError as error:
            close = " or ".join(close_names(name, self.cache.names()))
            if not close:
                raise
            raise ModelNotFoundError(
                error.message, hint=f"Did you mean {close}, which is in the cache? {error.hint or ''}".rstrip()
            ) from error

    def _fetch(
        self,
        result: PullResult,
        plan: DownloadPlan,
        request: PullRequest,
        progress: Progress,
        *,
        verify_present: bool,
    ) -> PullResult:
        # The space is checked before ``with_tensors`` sends requests: a plan by names alone is an upper bound.
        require_space(plan, self.hub.missing_bytes(plan), self.cache.free_bytes())
        plan = plan_download(self.hub.with_tensors(plan.model))
        missing = self.hub.missing_bytes(plan)
        warning = _warning(plan)
        if warning:
            progress.note(f"Warning: {warning}")
        request.planned(plan)
        self.hub.fetch(plan, progress, verify_present=verify_present)
        handle = self.cache.find(result.name, plan.model.commit)
        description = self.describe(handle) if handle else None
        return attrs.evolve(
            result,
            status=PullStatus.SUCCESS,
            handle=handle,
            plan=plan,
            missing_bytes=missing,
            report=description.health if description else None,
            framework=description.framework if description else None,
        )

    def _present(self, name: str, revision: str | None) -> tuple[ModelHandle | None, HealthReport | None]:
        """Return the cached model of a revision and its health; both None when it is not cached.

        No revision means the default branch, not any snapshot that was downloaded as another revision.
        """
        try:
            handle = self.cache.find(name, revision)
            if handle and handle.revision and revision is None:
                handle = self.cache.find(name, "main")
        except RevisionNotFoundError:
            return None, None
        return (handle, self.describe.health(handle)) if handle else (None, None)

    def _may_resume(self, name: str, report: HealthReport, request: PullRequest, confirmation: Confirmation) -> bool:
        """Whether to complete a damaged model: by option, while another client downloads it, or after confirmation."""
        if request.force_resume or self.cache.holders(name):
            return True
        facts = (f"Model '{name}' has partial download:", f"  {report.reason}")
        answer = confirmation.ask(facts, "Resume download?", default=True)
        if answer is None:
            raise RequiresConfirmationError(
                f"'{name}' is not whole: {report.reason}",
                hint=Advice(Remedy.COMPLETE_OR_REMOVE, {"reference": request.reference, "name": name}),
                fix=report.fix,
            )
        return answer

    def _full_name(self, name: str) -> str:
        """Add the owner to a bare name: that of the cached model of this name, else the default owner."""
        if "/" in name:
            return self._spelled_as_cached(check_name(name))
        default = check_name(f"{self.default_owner}/{name}")
        matches = [known for known in self.cache.names() if known.lower().rpartition("/")[2] == name.lower()]
        if default in matches or not matches:
            return default
        if len(matches) > 1:
            raise AmbiguousModelError(
                f"'{name}' fits {len(matches)} cached models", hint="Write the whole name.", matches=tuple(matches)
            )
        return check_name(matches[0])

    def _spelled_as_cached(self, name: str) -> str:
        """Return the spelling of the one cached model whose name differs in case only, else the name itself."""
        known = list(self.cache.names())
        alike = [other for other in known if other.lower() == name.lower()]
        return alike[0] if len(alike) == 1 and name not in known else name


def require_space(plan: DownloadPlan, missing: int, free: int | None) -> None:
    """Refuse a download that does not fit onto the disk of the cache.

    Args:
        plan: The download.
        missing: Its bytes that are not on the disk yet.
        free: Free bytes of the disk; None when unknown, which refuses nothing.

    Raises:
        StorageError: It does not fit; message and ``detail`` have the sizes.
    """
    if free is not None and missing > 0 and free < missing + SPARE_BYTES:
        needed, reserve, left = in_one_unit(missing, SPARE_BYTES, free)
        raise StorageError(
            f"'{plan.model.name}' needs {needed} more, and {reserve} are to stay free, but the disk of the model "
            f"cache has {left} left",
            hint="Make space, or set HF_HUB_CACHE to a directory on another disk.",
            detail={
                "needed_bytes": missing,
                "reserve_bytes": SPARE_BYTES,
                "free_bytes": free,
                "size_bytes": plan.size_bytes,
            },
        )


def _is_sufficient(present: ModelHandle, healthy: bool, revision: str | None, request: PullRequest) -> bool:
    """Whether a cached model is returned without a request to the hub: a branch may have moved, a commit cannot."""
    if request.accept_damaged and present.commit:
        return True
    return healthy and (revision is None or is_commit(revision) or abbreviates(revision, present.commit))


def _warning(plan: DownloadPlan) -> str | None:
    """Return the warning about a model that is not in MLX format, if any."""
    if plan.model.made_for_mlx:
        return None
    return f"'{plan.model.name}' is not marked as an MLX model; it runs only if MLX knows its architecture"


def _parse(reference: str) -> ModelRef:
    ref = ModelRef.parse(reference)
    if ref.is_path:
        raise ValidationError(f"'{reference}' is a path; pull takes the name of a model on the hub")
    if ref.revision is not None:
        check_revision(ref.revision)
        if ref.name in BUILT_IN_NAMES:
            raise without_revisions(ref)
    return ref
