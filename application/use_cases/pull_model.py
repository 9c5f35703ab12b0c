"""Pull a model: from the hub into the cache, whole, verified, and without asking twice for what is here already."""

import enum

import attrs

from mlxk.application.cache_lock import reserved
from mlxk.application.ports.confirmation import Confirmation
from mlxk.application.ports.model_cache import ModelCache
from mlxk.application.ports.model_hub import ModelHub
from mlxk.application.ports.model_source import ModelSource
from mlxk.application.ports.progress import Progress
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.resolve_model import DEFAULT_OWNER, without_revisions
from mlxk.domain.download import (
    DownloadPlan,
    abbreviates,
    check_name,
    check_revision,
    is_commit,
    plan_download,
)
from mlxk.domain.errors import (
    Advice,
    AmbiguousModelError,
    NetworkError,
    Remedy,
    RequiresConfirmationError,
    RevisionNotFoundError,
    StorageError,
    ValidationError,
)
from mlxk.domain.models.model import Framework, HealthReport, ModelHandle
from mlxk.domain.models.reference import BUILT_IN_NAMES, ModelRef, ReferenceKind

SPARE_BYTES = 64 * 1024 * 1024
"""Space that a download leaves free on the disk."""


class PullStatus(enum.Enum):
    """How a pull ended."""

    SUCCESS = "success"
    ALREADY_EXISTS = "already_exists"
    DRY_RUN = "dry_run"
    CANCELLED = "cancelled"


@attrs.frozen
class PullRequest:
    """What to pull, and how."""

    reference: str
    """What the user typed."""
    force_resume: bool = False
    """Whether a partial or damaged model is completed without asking."""
    dry_run: bool = False
    """Whether only to say what would be fetched."""
    take_damaged: bool = False
    """Whether a snapshot that is here is taken as it is, whole or not."""


@attrs.frozen
class PullResult:
    """What a pull did."""

    name: str
    """``org/name``."""
    status: PullStatus
    expanded: bool = False
    """Whether the name was completed."""
    handle: ModelHandle | None = None
    """The model in the cache; None when it is not there."""
    plan: DownloadPlan | None = None
    """What was or would be fetched; None when the hub was not asked."""
    missing_bytes: int = 0
    """How much of the plan was not here before."""
    report: HealthReport | None = None
    """What the check after the download found."""
    framework: Framework | None = None
    """The format of the weights that were fetched; None when none were."""

    @property
    def warning(self) -> str | None:
        """Something to know before the model is used."""
        return None if self.plan is None or self.framework is Framework.MLX else _warning(self.plan)


@attrs.frozen
class PullModel:
    """Pulls one model."""

    cache: ModelCache
    built_in: ModelSource
    hub: ModelHub
    describe: DescribeModel

    def __call__(self, request: PullRequest, progress: Progress, confirmation: Confirmation) -> PullResult:
        """Bring a model into the cache.

        A branch that is asked for by name is looked up on the hub, and a newer revision of it is fetched. Without a
        revision, or with a commit, a model that is here and whole is left as it is and the hub is not asked.

        Args:
            request: What to pull, and how.
            progress: Told how far it is.
            confirmation: Asked before a partial or damaged model is completed.

        Raises:
            ValidationError: The reference is not the name of a model.
            AmbiguousModelError: A bare name is that of several cached models.
            RequiresConfirmationError: The model is partial or damaged, and nobody is there to say what to do.
            MlxkError: The hub, the network or the disk refuses; see ``ModelHub``.
        """
        ref = _parse(request.reference)
        if ref.kind is ReferenceKind.BUILT_IN:
            return PullResult(ref.name, PullStatus.ALREADY_EXISTS, handle=self.built_in.find(ref.name))
        name = self._full_name(ref.name)
        result = PullResult(name, PullStatus.DRY_RUN, expanded=name != ref.name)
        if request.dry_run:
            plan = plan_download(self.hub.describe(name, ref.revision))
            return attrs.evolve(result, plan=plan, missing_bytes=self.hub.missing_bytes(plan))
        with reserved(self.cache, name, "pulling it", progress):
            return self._pull(result, ref.revision, request, progress, confirmation)

    def _pull(
        self,
        result: PullResult,
        revision: str | None,
        request: PullRequest,
        progress: Progress,
        confirmation: Confirmation,
    ) -> PullResult:
        present, report = self._present(result.name, revision)
        whole = report is not None and report.healthy
        here = attrs.evolve(result, status=PullStatus.ALREADY_EXISTS, handle=present, report=report)
        if present and _is_enough(present, whole, revision, request):
            return here
        if report and not whole and not self._may_resume(result.name, report, request, confirmation):
            return attrs.evolve(here, status=PullStatus.CANCELLED)
        try:
            plan = plan_download(self.hub.describe(result.name, revision))
        except NetworkError as error:
            if not whole:
                raise
            progress.note(f"{error.message}; what is in the cache is taken as it is.")
            return here
        listed = present is not None and present.revision == plan.model.commit
        return here if whole and listed else self._fetch(result, plan, progress, verify_present=listed)

    def _fetch(self, result: PullResult, plan: DownloadPlan, progress: Progress, *, verify_present: bool) -> PullResult:
        missing = self.hub.missing_bytes(plan)
        self._require_space(plan, missing)
        warning = _warning(plan)
        if warning:
            progress.note(f"Warning: {warning}")
        self.hub.fetch(plan, progress, verify_present=verify_present)
        handle = self.cache.find(result.name, plan.model.commit)
        found = self.describe(handle) if handle else None
        return attrs.evolve(
            result,
            status=PullStatus.SUCCESS,
            handle=handle,
            plan=plan,
            missing_bytes=missing,
            report=found.health if found else None,
            framework=found.framework if found else None,
        )

    def _present(self, name: str, revision: str | None) -> tuple[ModelHandle | None, HealthReport | None]:
        """Return what is cached of a revision, and whether it is whole; one that is not here counts as nothing.

        Without a revision the default branch is meant: a snapshot that was fetched as another revision is not it.
        """
        try:
            handle = self.cache.find(name, revision)
            if handle and handle.revision and revision is None:
                handle = self.cache.find(name, "main")
        except RevisionNotFoundError:
            return None, None
        return (handle, self.describe.health(handle)) if handle else (None, None)

    def _may_resume(self, name: str, report: HealthReport, request: PullRequest, confirmation: Confirmation) -> bool:
        """Whether to complete a damaged model: when told to, or while another client is at it."""
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
        """Complete a bare name: the cached model of that name whoever made it, else the one of our default owner."""
        if "/" in name:
            return check_name(name)
        check_name(f"{DEFAULT_OWNER}/{name}")
        wanted = name.lower()
        matches = [known for known in self.cache.names() if known.lower().rpartition("/")[2] == wanted]
        default = f"{DEFAULT_OWNER}/{name}"
        if default in matches or not matches:
            return default
        if len(matches) > 1:
            raise AmbiguousModelError(
                f"'{name}' fits {len(matches)} cached models", hint="Write the whole name.", matches=tuple(matches)
            )
        return check_name(matches[0])

    def _require_space(self, plan: DownloadPlan, missing: int) -> None:
        free = self.cache.free_bytes()
        if free is not None and missing > 0 and free < missing + SPARE_BYTES:
            raise StorageError(
                f"'{plan.model.name}' needs {_gigabytes(missing)} more, and the disk of the model cache has "
                f"{_gigabytes(free)} left",
                hint="Make space, or set HF_HUB_CACHE to a directory on another disk.",
                detail={"needed_bytes": missing, "free_bytes": free, "size_bytes": plan.size_bytes},
            )


def _is_enough(present: ModelHandle, whole: bool, revision: str | None, request: PullRequest) -> bool:
    """Whether what is cached is taken without asking the hub: a branch may have moved, a commit cannot."""
    if request.take_damaged and present.commit:
        return True
    return whole and (revision is None or is_commit(revision) or abbreviates(revision, present.commit))


def _warning(plan: DownloadPlan) -> str | None:
    """Say what is to be known before a model is fetched."""
    if plan.model.made_for_mlx:
        return None
    return f"'{plan.model.name}' is not marked as an MLX model; it may have to be converted"


def _parse(reference: str) -> ModelRef:
    ref = ModelRef.parse(reference)
    if ref.is_path:
        raise ValidationError(f"'{reference}' is a path; pull takes the name of a model on the hub")
    if ref.revision is not None:
        check_revision(ref.revision)
        if ref.name in BUILT_IN_NAMES:
            raise without_revisions(ref)
    return ref


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:.1f} MB"
