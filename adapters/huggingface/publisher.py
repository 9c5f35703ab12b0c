"""Uploads to the hub through its own client: repositories, branches, files and commits."""

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants, errors, utils

from mlxk.adapters.huggingface.answers import list_files, model_info
from mlxk.adapters.huggingface.client import HubClient, is_transient, reason_of, status_of, translate_errors
from mlxk.application.ports.hub import ModelPublisher, Publication, Published
from mlxk.application.ports.system import Progress
from mlxk.domain.errors import AccessDeniedError, UploadFailedError
from mlxk.domain.publication import RemoteState

COMMIT_ATTEMPTS = 4
_XET_TOKEN = "xet-write-token"
"""Part of a URL that hubs without Xet do not have."""
PARENT_CHANGED = 412
"""Status if the branch is no longer at the parent commit."""


class HuggingFaceModelPublisher(ModelPublisher):
    """Uploads to a Hugging Face Hub.

    Args:
        client: Access to the hub.
    """

    def __init__(self, client: HubClient) -> None:
        self._client = client

    def url(self, name: str) -> str:
        return f"{self._client.access.address}/{name}"

    def state(self, name: str, branch: str) -> RemoteState:
        self._require_token()
        with translate_errors(name, branch, self._client.access):
            try:
                info = model_info(self._client, name)
            except errors.RepositoryNotFoundError:
                return RemoteState()
            try:
                info = model_info(self._client, name, branch)
                branch_exists = True
            except errors.RevisionNotFoundError:
                branch_exists = False
            files = list_files(self._client, name, info.commit)
        return RemoteState(True, info.private, branch_exists, info.commit, files)

    def create(self, name: str, *, private: bool) -> None:
        self._require_token()
        with self._uploading(name):
            self._client.api().create_repo(name, private=private, exist_ok=True)

    def create_branch(self, name: str, branch: str) -> None:
        self._require_token()
        with self._uploading(name):
            self._client.api().create_branch(name, branch=branch, exist_ok=True)

    def publish(self, publication: Publication, progress: Progress) -> Published:
        self._require_token()
        changes, directory = publication.changes, publication.directory
        with self._uploading(publication.name):
            sizes = {path: os.path.getsize(os.path.join(directory, path)) for path in changes.uploads}
        progress.begin("Uploading", sizes)
        try:
            with _captured_log() as log, self._uploading(publication.name):
                api = self._client.api()
                info = self._commit(api, publication, progress)
        finally:
            progress.end()
        return Published(info.oid, str(info.commit_url), tuple(log))

    def _commit(self, api: HfApi, publication: Publication, progress: Progress) -> CommitInfo:
        """Create the commit, over plain HTTP if the hub has no Xet, which the hub client does not check."""
        try:
            return self._try_commit(api, publication)
        except Exception as error:
            if constants.HF_HUB_DISABLE_XET or _XET_TOKEN not in str(error):
                raise
            constants.HF_HUB_DISABLE_XET = True
            progress.note("The hub has no Xet, so the files are uploaded over plain HTTP.")
        return self._try_commit(api, publication)

    def _try_commit(self, api: HfApi, publication: Publication) -> CommitInfo:
        """Create the commit. If a response is lost, check whether the commit exists before retrying."""
        for attempt in range(COMMIT_ATTEMPTS):
            try:
                return api.create_commit(
                    publication.name,
                    _operations(publication),
                    commit_message=publication.message,
                    revision=publication.branch,
                    parent_commit=publication.parent,
                )
            except httpx2.HTTPError as error:
                parent_changed = attempt > 0 and status_of(error) == PARENT_CHANGED
                may_exist = parent_changed or is_transient(error)
                commit = self._existing_commit(api, publication) if may_exist else None
                if commit:
                    return commit
                if not is_transient(error) or attempt == COMMIT_ATTEMPTS - 1:
                    raise
                self._client.pause(attempt + 1, error)
        raise AssertionError("the last attempt returns or raises")

    def _existing_commit(self, api: HfApi, publication: Publication) -> CommitInfo | None:
        """Return the head of the branch if it is the publication's commit."""
        name, branch = publication.name, publication.branch
        head = self._client.with_retries(lambda: api.list_repo_commits(name, revision=branch))[0]
        if head.commit_id == publication.parent or head.title != publication.message:
            return None
        url = f"{self.url(publication.name)}/commit/{head.commit_id}"
        return CommitInfo(
            commit_url=url,
            commit_message=publication.message,
            commit_description="",
            oid=head.commit_id,
            _endpoint=self._client.access.endpoint,
        )

    def _require_token(self) -> None:
        if not self._client.access.token:
            raise AccessDeniedError(
                "pushing needs a token", hint="Set HF_TOKEN to a token that may write, or run: hf auth login"
            )

    @contextmanager
    def _uploading(self, name: str) -> Iterator[None]:
        """Translate the exceptions of the hub client during writes."""
        try:
            with translate_errors(name, None, self._client.access), contextlib.redirect_stdout(io.StringIO()):
                try:
                    yield
                except errors.HfHubHTTPError as error:
                    status = error.response.status_code
                    if status in {401, 403}:
                        raise AccessDeniedError(
                            f"the hub does not let you write to '{name}' (HTTP {status})",
                            hint="Check that the token in HF_TOKEN may write there.",
                        ) from error
                    if status == PARENT_CHANGED:
                        raise UploadFailedError(
                            f"somebody else has changed '{name}' meanwhile", hint="Run the same command again."
                        ) from error
                    if status in {400, 409, 413, 422}:
                        reason = error.server_message or f"HTTP {status}"
                        raise UploadFailedError(f"the hub refuses the upload to '{name}': {reason}") from error
                    raise
        except (RuntimeError, ValueError, OSError) as error:
            because = f" ({reason_of(error.__cause__)})" if error.__cause__ else ""
            raise UploadFailedError(
                f"'{name}' could not be uploaded: {error}{because}", hint="Run the same command again."
            ) from error


def _operations(publication: Publication) -> list[CommitOperationAdd | CommitOperationDelete]:
    changes, directory = publication.changes, publication.directory
    additions = [CommitOperationAdd(path, os.path.join(directory, path)) for path in changes.uploads]
    return [*additions, *(CommitOperationDelete(path) for path in changes.deleted)]


@contextmanager
def _captured_log() -> Iterator[list[str]]:
    """Collect the log messages of the hub client, which would go to the terminal otherwise."""
    log: list[str] = []

    class Collector(logging.Handler):
        """Appends messages to a list."""

        def emit(self, record: logging.LogRecord) -> None:
            """Append one message."""
            log.append(record.getMessage())

    logger = logging.getLogger("huggingface_hub")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    logger.handlers, logger.propagate = [Collector(logging.INFO)], False
    logger.setLevel(logging.INFO)
    had_progress_bars = not utils.are_progress_bars_disabled()  # type: ignore[attr-defined]  # public, though not marked so
    utils.disable_progress_bars()  # type: ignore[attr-defined]  # the same
    try:
        yield log
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
        if had_progress_bars:
            utils.enable_progress_bars()  # type: ignore[attr-defined]  # the same
