"""Push a folder to the hub in one commit, after checks for secrets, local paths and visibility."""

import enum

import attrs

from mlxk.application.ports.hub import ModelPublisher, Publication, PublicationFolder, Published
from mlxk.application.ports.model_directories import WorkspaceStore
from mlxk.application.ports.system import Progress
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.domain.errors import (
    Advice,
    AmbiguousModelError,
    ModelNotFoundError,
    Remedy,
    RevisionNotFoundError,
    SecretsFoundError,
    ValidationError,
)
from mlxk.domain.hub import check_revision
from mlxk.domain.models.integrity import listed
from mlxk.domain.models.model import HealthReport, ModelHandle, Origin
from mlxk.domain.models.reference import check_name, is_path
from mlxk.domain.publication import (
    MAX_SCANNED_BYTES,
    ChangeSet,
    ContentDigests,
    FolderScan,
    RemoteState,
    SecretFinding,
    compare,
    judge_name,
    judge_text,
)

_NAMED_AT_MOST = 5
"""Findings in the message of an error."""


class Visibility(enum.Enum):
    """Visibility of a repository."""

    PRIVATE = "private"
    PUBLIC = "public"


class PushExtent(enum.Enum):
    """How far a push goes."""

    ALL = "all"
    DRY_RUN = "dry-run"
    """Stop after comparing the folder with the hub."""
    CHECK_ONLY = "check-only"
    """Stop after checking the folder; no request to the hub."""


@attrs.frozen
class PushRequest:
    """Folder, repository and options of a push."""

    folder: str
    """A path, an unambiguous prefix of one, or the name of a workspace in the workspace home."""
    name: str
    """``org/name``."""
    visibility: Visibility | None
    """Required unless only the folder is checked."""
    branch: str = "main"
    message: str = "Upload with mlxk"
    create: bool = False
    """Whether to create a missing repository or branch."""
    delete: bool = False
    """Whether to delete remote files that the folder lacks."""
    extent: PushExtent = PushExtent.ALL
    allowed: tuple[str, ...] = ()
    """Paths excluded from the check for secrets."""


@attrs.frozen
class PushResult:
    """Result of a push, or of a dry run."""

    request: PushRequest
    directory: str
    url: str
    scan: FolderScan
    health: HealthReport
    left_out: tuple[str, ...] = ()
    """Weight files that do not belong to the model and are not published, sorted."""
    state: RemoteState | None = None
    """State before the push; None without a request to the hub."""
    changes: ChangeSet | None = None
    """The difference to the branch; None without a request to the hub."""
    published: Published | None = None
    """The commit; None without one."""

    @property
    def created_repository(self) -> bool:
        """Whether the repository was, or would be, created."""
        return self.state is not None and not self.state.exists

    @property
    def created_branch(self) -> bool:
        """Whether the branch was, or would be, created in a repository that exists."""
        return self.state is not None and self.state.exists and not self.state.branch_exists


@attrs.frozen
class PushModel:
    """Publishes one folder."""

    folder: PublicationFolder
    workspaces: WorkspaceStore
    publisher: ModelPublisher
    describe: DescribeModel
    home: str
    """The user's home directory; files that contain its path are not published."""

    def __call__(self, request: PushRequest, progress: Progress) -> PushResult:
        """Commit the content of a folder to a branch.

        Raises:
            ValidationError: The folder is empty or has links out of it, the repository is public and ``visibility`` is
                not, or a name is invalid.
            ModelNotFoundError, AmbiguousModelError: The folder or the repository does not exist, or is ambiguous.
            RevisionNotFoundError: The branch does not exist.
            SecretsFoundError: A file seems to contain a secret.
            MlxkError: The upload failed, see ``ModelPublisher``.
        """
        check_name(request.name)
        check_revision(request.branch)
        if request.visibility is None and request.extent is not PushExtent.CHECK_ONLY:
            raise ValidationError("say who may see it, with private or public", options=("private", "public"))
        directory = self._directory(request.folder)
        scan = self.folder.scan(directory)
        _require_closed(scan)
        details = self.describe.details(ModelHandle(directory, directory, Origin.WORKSPACE))
        strays = tuple(file.path for file in scan.files if file.path in details.strays)
        scan = attrs.evolve(scan, files=tuple(file for file in scan.files if file.path not in strays))
        if strays:
            progress.note(f"Left out, as they do not belong to the model: {listed(strays)}")
        self._require_no_secrets(directory, scan, request)
        health = details.description.health
        result = PushResult(request, directory, self.publisher.url(request.name), scan, health, strays)
        if request.extent is PushExtent.CHECK_ONLY:
            return result
        state = self.publisher.state(request.name, request.branch)
        _require_consent(request, state)
        changes = compare(self._digests(directory, scan, state, progress), state.files, delete=request.delete)
        result = attrs.evolve(result, state=state, changes=changes)
        if request.extent is PushExtent.DRY_RUN or (state.branch_exists and not changes):
            return result
        return attrs.evolve(result, published=self._publish(request, directory, state, changes, progress))

    def _publish(
        self, request: PushRequest, directory: str, state: RemoteState, changes: ChangeSet, progress: Progress
    ) -> Published | None:
        if not state.exists:
            self.publisher.create(request.name, private=request.visibility is Visibility.PRIVATE)
            state = self.publisher.state(request.name, request.branch)
        if not state.branch_exists and request.branch != "main":
            self.publisher.create_branch(request.name, request.branch)
            state = self.publisher.state(request.name, request.branch)
        if not changes:
            return None  # a new branch with the content of the folder
        publication = Publication(request.name, request.branch, directory, changes, request.message, state.commit)
        return self.publisher.publish(publication, progress)

    def _directory(self, folder: str) -> str:
        if not folder.strip():
            raise ValidationError("the folder's name is empty")
        if not is_path(folder):
            handle = self.workspaces.find(folder)
            if handle:
                return handle.directory
        directory = self.folder.find(folder)
        if directory:
            return directory
        matches = tuple(self.workspaces.below(folder)) if is_path(folder) else ()
        if len(matches) > 1:
            names = tuple(sorted(handle.display_name or handle.name for handle in matches))
            raise AmbiguousModelError(f"'{folder}' fits {len(names)} workspaces", matches=names)
        if not matches:
            raise ModelNotFoundError(f"there is no folder '{folder}'")
        return matches[0].directory

    def _require_no_secrets(self, directory: str, scan: FolderScan, request: PushRequest) -> None:
        findings: list[SecretFinding] = []
        for file in scan.files:
            if file.path in request.allowed:
                continue
            by_name = judge_name(file.path)
            findings += [by_name] if by_name else []
            text = self.folder.text(directory, file.path, MAX_SCANNED_BYTES)
            findings += judge_text(file.path, text, (self.home, directory)) if text else []
        if findings:
            named = ", ".join(map(str, findings[:_NAMED_AT_MOST]))
            more = f" and {len(findings) - _NAMED_AT_MOST} more" if len(findings) > _NAMED_AT_MOST else ""
            raise SecretsFoundError(
                f"nothing was uploaded: {named}{more}",
                hint=Advice(Remedy.ALLOW_SECRET),
                detail={"findings": [{"path": each.path, "line": each.line, "kind": each.kind} for each in findings]},
            )

    def _digests(
        self, directory: str, scan: FolderScan, state: RemoteState, progress: Progress
    ) -> dict[str, ContentDigests | None]:
        """Hash the files that the branch has with the same size; the others differ, and get None."""
        remote_sizes = {file.path: file.size_bytes for file in state.files}
        same_size = [file for file in scan.files if remote_sizes.get(file.path) == file.size_bytes]
        digests: dict[str, ContentDigests | None] = dict.fromkeys(file.path for file in scan.files)
        if not same_size:
            return digests
        done: dict[str, int] = {}
        progress.begin("Comparing", {file.path: file.size_bytes for file in same_size})
        try:
            for file in same_size:

                def on_bytes(count: int, path: str = file.path) -> None:
                    done[path] = count
                    progress.advance(done)

                digests[file.path] = self.folder.digests(directory, file.path, on_bytes)
        finally:
            progress.end()
        return digests


def _require_closed(scan: FolderScan) -> None:
    if scan.outward_links:
        raise ValidationError(
            f"{scan.outward_links[0]} is a link out of the folder, or to nowhere",
            hint="Put the file itself there, or list the link in .hfignore.",
            detail={"links": list(scan.outward_links)},
        )
    if not scan.files:
        raise ValidationError("the folder holds nothing to upload")


def _require_consent(request: PushRequest, state: RemoteState) -> None:
    """Refuse to push to a public repository, or to create a repository or branch, without the matching option."""
    if state.exists and not state.private and request.visibility is Visibility.PRIVATE:
        raise ValidationError(
            f"private: '{request.name}' exists and is public",
            hint=Advice(Remedy.PUBLISH_OPENLY),
            options=("private",),
        )
    if request.create or request.extent is PushExtent.DRY_RUN:
        return
    if not state.exists:
        raise ModelNotFoundError(
            f"'{request.name}' is not on the hub, or not shown to you", hint=Advice(Remedy.CREATE_REPOSITORY)
        )
    if not state.branch_exists:
        raise RevisionNotFoundError(
            f"'{request.name}' has no branch '{request.branch}'", hint=Advice(Remedy.CREATE_REPOSITORY)
        )
