"""Port: downloads from the hub."""

from abc import abstractmethod
from typing import Protocol

from mlxk.application.ports.progress import Progress
from mlxk.domain.download import DownloadPlan, RemoteModel
from mlxk.domain.search import FoundModel, RemoteCard


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
