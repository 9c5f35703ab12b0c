"""Ports to the hub: downloads, uploads, and the folder that an upload is made from."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol

import attrs

from mlxk.application.ports.system import Progress
from mlxk.domain.hub import DownloadPlan, FoundModel, RemoteCard, RemoteModel
from mlxk.domain.publication import ChangeSet, ContentDigests, FolderScan, RemoteState


class ModelHub(Protocol):
    """Downloads models into the cache. Requests have timeouts and are retried after transient errors."""

    @abstractmethod
    def describe(self, name: str, revision: str | None = None) -> RemoteModel:
        """Return one revision of a model, after checking that its files are accessible.

        Args:
            name: ``org/name``, in any case of letters; the description has it as the hub spells it.
            revision: A branch, a tag or a commit; None means the default branch.

        Raises:
            ModelNotFoundError: The model does not exist, or is private and not visible with the token.
            RevisionNotFoundError: The model has no such revision.
            AccessDeniedError: The terms of the model have not been accepted, or the token is invalid.
            NetworkError: The hub cannot be reached, or offline mode is set.
            DownloadFailedError: The hub sent an invalid response.
        """

    @abstractmethod
    def card(self, name: str, revision: str | None = None) -> RemoteCard:
        """Return what the hub says of one revision of a model, also where its files are not accessible.

        Args:
            name: ``org/name``, in any case of letters; the description has it as the hub spells it.
            revision: A branch, a tag or a commit; None means the default branch.

        Raises:
            ModelNotFoundError, RevisionNotFoundError, NetworkError, DownloadFailedError: As for ``describe``.
            AccessDeniedError: The model is disabled, or the token is invalid.
        """

    @abstractmethod
    def newest_commit(self, name: str) -> str:
        """Return the commit of a model's default branch, 40 hexadecimal digits; its files are not asked about.

        Args:
            name: ``org/name``.

        Raises:
            ValidationError: The hub can have no model of this name.
            ModelNotFoundError: The model does not exist, or is private and not visible with the token.
            AccessDeniedError: The model is disabled, or the token is invalid.
            NetworkError, DownloadFailedError: As for ``describe``.
        """

    @abstractmethod
    def search(self, terms: str, limit: int, *, mlx_only: bool) -> tuple[FoundModel, ...]:
        """Return the models that have all terms in their names, the most downloaded first.

        Nothing but the listing is asked of the hub.

        Args:
            terms: Words, not blank.
            limit: Most models, at least 1.
            mlx_only: Whether to list only models with the tag of MLX.

        Raises:
            AccessDeniedError: The token is invalid.
            NetworkError: The hub cannot be reached, limits requests, or offline mode is set.
            DownloadFailedError: The hub sent an invalid response.
        """

    @abstractmethod
    def with_tensors(self, model: RemoteModel) -> RemoteModel:
        """Return a model with the tensors of its weight files, where names and index leave a doubt which are the model.

        Reads the beginnings of those files.

        Raises:
            AccessDeniedError, NetworkError, DownloadFailedError: As above.
        """

    @abstractmethod
    def missing_bytes(self, plan: DownloadPlan) -> int:
        """Return the bytes of a plan that are not on the disk yet."""

    @abstractmethod
    def fetch(self, plan: DownloadPlan, progress: Progress, *, verify_present: bool = False) -> None:
        """Download the files of a plan; they become visible together, when all are complete.

        Every file is compared with its digest. Bytes received before a failure or a crash are kept and not downloaded
        again. Idempotent, also for concurrent processes: each file is downloaded once.

        Args:
            plan: The files to download.
            progress: Receives the bytes of every file.
            verify_present: Whether to hash files that are present already and download damaged ones again.

        Raises:
            AccessDeniedError, NetworkError, DownloadFailedError: As above; valid bytes are kept.
            StorageError: The disk is full or not writable; valid bytes are kept.
        """


@attrs.frozen
class Publication:
    """One commit to make."""

    name: str
    """``org/name``."""
    branch: str
    directory: str
    """The local folder of the files, absolute."""
    changes: ChangeSet
    message: str
    parent: str | None
    """The commit that the changes are relative to; the hub refuses if the branch has moved."""


@attrs.frozen
class Published:
    """A commit on the hub."""

    commit: str
    url: str
    log: tuple[str, ...] = ()
    """Messages of the hub client."""


class ModelPublisher(Protocol):
    """Writes to the hub with the user's token. Every request has a timeout."""

    @abstractmethod
    def url(self, name: str) -> str:
        """Return the URL of a repository."""

    @abstractmethod
    def state(self, name: str, branch: str) -> RemoteState:
        """Return the state of a repository; one that is not visible with the token does not exist.

        Raises:
            AccessDeniedError: There is no token, or it is invalid.
            NetworkError, DownloadFailedError: As in ``ModelHub``.
        """

    @abstractmethod
    def create(self, name: str, *, private: bool) -> None:
        """Create a repository; an existing one stays as it is.

        Raises:
            AccessDeniedError: The token does not permit it.
            NetworkError, UploadFailedError: The hub refuses.
        """

    @abstractmethod
    def create_branch(self, name: str, branch: str) -> None:
        """Create a branch at the head of the default branch.

        Raises:
            The same errors as ``create``.
        """

    @abstractmethod
    def publish(self, publication: Publication, progress: Progress) -> Published:
        """Upload the files and make one commit. Files uploaded by an earlier attempt are not sent again.

        Raises:
            UploadFailedError: The branch has moved, or the hub refuses; nothing was committed.
            AccessDeniedError, NetworkError: As above.
        """


class PublicationFolder(Protocol):
    """Reads folders to be published. Links out of the folder are not followed."""

    @abstractmethod
    def find(self, path: str) -> str | None:
        """Return the absolute directory a path means, or None when it is not a directory."""

    @abstractmethod
    def scan(self, directory: str) -> FolderScan:
        """List the files to publish, by the rules of ``domain.publication`` and of the folder's ``.hfignore``.

        ``.hfignore`` has the syntax of ``.gitignore``; as in git, a file below an ignored directory cannot be included
        again.

        Raises:
            ValidationError: The rules are invalid.
            StorageError: The folder cannot be read.
        """

    @abstractmethod
    def text(self, directory: str, path: str, limit: int) -> str | None:
        """Return the text of a file; None when it is longer than ``limit`` bytes or binary.

        The text of a ``.safetensors`` file is its header, in which programs record metadata.

        Raises:
            StorageError: The file cannot be read.
        """

    @abstractmethod
    def digests(self, directory: str, path: str, report: Callable[[int], None]) -> ContentDigests:
        """Read a file and return its digests.

        Args:
            directory: The folder.
            path: The file, relative to it.
            report: Called with the bytes read so far.

        Raises:
            StorageError: The file cannot be read.
        """
