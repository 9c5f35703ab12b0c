"""Ports to the hub: downloads, uploads, and the local folder of an upload."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol

import attrs

from mlxk.application.ports.system import Progress
from mlxk.domain.hub import DownloadPlan, FoundModel, RemoteCard, RemoteModel
from mlxk.domain.publication import ChangeSet, ContentDigests, FolderScan, RemoteState


class ModelHub(Protocol):
    """Downloads models into the cache. Requests have timeouts and are retried after transient errors.

    Every method that sends a request also raises ``ValidationError`` when a proxy set in the environment is unusable.
    """

    @abstractmethod
    def describe(self, name: str, revision: str | None = None) -> RemoteModel:
        """Return one revision of a model, after checking that its files are accessible.

        Args:
            name: ``org/name``; case does not matter. The result has the name as the hub spells it.
            revision: A branch, a tag or a commit; None means the default branch.

        Raises:
            ValidationError: The name or the revision cannot be one on the hub.
            ModelNotFoundError: The model does not exist, or is private and not visible with the token.
            RevisionNotFoundError: The model has no such revision.
            AccessDeniedError: The terms of the model have not been accepted, or the token is invalid.
            NetworkError: The hub cannot be reached, or offline mode is set.
            DownloadFailedError: The hub sent an invalid response.
        """

    @abstractmethod
    def card(self, name: str, revision: str | None = None) -> RemoteCard:
        """Return the metadata of one revision of a model, even if its files are not accessible.

        Args:
            name: ``org/name``; case does not matter. The result has the name as the hub spells it.
            revision: A branch, a tag or a commit; None means the default branch.

        Raises:
            ValidationError, ModelNotFoundError, RevisionNotFoundError, NetworkError, DownloadFailedError: As for
                ``describe``.
            AccessDeniedError: The model is disabled, or the token is invalid.
        """

    @abstractmethod
    def newest_commit(self, name: str) -> str:
        """Return the head of a model's default branch, 40 hexadecimal digits; its files are not listed.

        Args:
            name: ``org/name``.

        Raises:
            ValidationError: The name cannot be one on the hub.
            ModelNotFoundError: The model does not exist, or is private and not visible with the token.
            AccessDeniedError: The model is disabled, or the token is invalid.
            NetworkError, DownloadFailedError: As for ``describe``.
        """

    @abstractmethod
    def search(self, terms: str, limit: int, *, mlx_only: bool) -> tuple[FoundModel, ...]:
        """Return the models that have all terms in their names, the most downloaded first; only listings are requested.

        Args:
            terms: Words separated by spaces, not blank.
            limit: Maximum number of models, at least 1.
            mlx_only: Whether to list only models with the tag of MLX.

        Raises:
            AccessDeniedError: The token is invalid.
            NetworkError: The hub cannot be reached, limits requests, or offline mode is set.
            DownloadFailedError: The hub sent an invalid response.
        """

    @abstractmethod
    def with_tensors(self, model: RemoteModel) -> RemoteModel:
        """Return a model with the tensor names of its weight files, read from their headers.

        Files are read only where names and index do not decide which weight files belong to the model.

        Raises:
            AccessDeniedError, NetworkError, DownloadFailedError: As for ``describe``.
        """

    @abstractmethod
    def missing_bytes(self, plan: DownloadPlan) -> int:
        """Return how many bytes of a plan are not on the disk yet."""

    @abstractmethod
    def fetch(self, plan: DownloadPlan, progress: Progress, *, verify_present: bool = False) -> None:
        """Download the files of a plan into the cache; they become visible together, when all are complete.

        Every file is verified against its digest. Bytes received before a failure or a crash are kept and not
        downloaded again. Idempotent, also for concurrent processes: each file is downloaded once.

        Args:
            plan: The files to download.
            progress: Receives the bytes of every file.
            verify_present: Whether to hash files that are present already and download damaged ones again.

        Raises:
            AccessDeniedError, NetworkError, DownloadFailedError: As for ``describe``; valid bytes are kept.
            StorageError: The disk is full or not writable; valid bytes are kept.
        """


@attrs.frozen
class Publication:
    """One commit to push."""

    name: str
    """``org/name``."""
    branch: str
    directory: str
    """The local folder of the files, absolute."""
    changes: ChangeSet
    message: str
    parent: str | None
    """The commit that the changes are relative to; the hub refuses if the branch has moved. None for no check."""


@attrs.frozen
class Published:
    """A commit on the hub."""

    commit: str
    url: str
    log: tuple[str, ...] = ()
    """Messages of the hub client."""


class ModelPublisher(Protocol):
    """Writes to the hub with the user's token. Every request has a timeout. Names are ``org/name``.

    Every method that sends a request also raises ``ValidationError`` when a proxy set in the environment is unusable.
    """

    @abstractmethod
    def url(self, name: str) -> str:
        """Return the URL of a repository's page; no request is made."""

    @abstractmethod
    def state(self, name: str, branch: str) -> RemoteState:
        """Return the state of a repository and of one branch; a repository the token cannot see counts as missing.

        Raises:
            AccessDeniedError: There is no token, or it is invalid.
            NetworkError: The hub cannot be reached, or offline mode is set.
            DownloadFailedError: The hub sent an invalid response.
        """

    @abstractmethod
    def create(self, name: str, *, private: bool) -> None:
        """Create a repository; an existing one is left unchanged.

        Raises:
            AccessDeniedError: There is no token, or it does not permit this.
            NetworkError: The hub cannot be reached, or offline mode is set.
            UploadFailedError: The hub refuses.
        """

    @abstractmethod
    def create_branch(self, name: str, branch: str) -> None:
        """Create a branch at the head of the default branch.

        Raises:
            AccessDeniedError, NetworkError, UploadFailedError: As for ``create``.
        """

    @abstractmethod
    def publish(self, publication: Publication, progress: Progress) -> Published:
        """Upload the files and push one commit. Files uploaded by an earlier attempt are not sent again.

        Raises:
            UploadFailedError: The branch has moved, or the hub refuses; nothing was committed.
            AccessDeniedError, NetworkError: As for ``create``.
        """


class PublicationFolder(Protocol):
    """Reads local folders to be published. Links out of the folder are not followed."""

    @abstractmethod
    def find(self, path: str) -> str | None:
        """Return the absolute path of a directory; None when ``path`` is not a directory."""

    @abstractmethod
    def scan(self, directory: str) -> FolderScan:
        """List the files to publish, by the rules of ``domain.publication`` and of the folder's ``.hfignore``.

        ``.hfignore`` has the syntax of ``.gitignore``; as in git, a file below an ignored directory cannot be included
        again.

        Raises:
            ValidationError: A rule in ``.hfignore`` is invalid.
            StorageError: The folder cannot be read.
        """

    @abstractmethod
    def text(self, directory: str, path: str, limit: int) -> str | None:
        """Return the text of a file; None when it is binary or longer than ``limit`` bytes.

        For a ``.safetensors`` file it is the header, which may hold metadata of other programs.

        Raises:
            StorageError: The file cannot be read.
        """

    @abstractmethod
    def digests(self, directory: str, path: str, report: Callable[[int], None]) -> ContentDigests:
        """Hash a file.

        Args:
            directory: The folder.
            path: The file, relative to the folder.
            report: Callback with the number of bytes read so far.

        Raises:
            StorageError: The file cannot be read.
        """
