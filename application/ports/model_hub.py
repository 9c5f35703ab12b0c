"""Port: models on the hub, and getting them into the cache."""

from abc import abstractmethod
from typing import Protocol

from mlxk.application.ports.progress import Progress
from mlxk.domain.download import DownloadPlan, RemoteModel


class ModelHub(Protocol):
    """Reads from the hub. Every request has a time limit and is repeated when the network or the hub falters."""

    @abstractmethod
    def describe(self, name: str, revision: str | None = None) -> RemoteModel:
        """Return one revision of a model, after making sure that its files may be read.

        Args:
            name: ``org/name``.
            revision: A branch, a tag or a commit; None means the default branch.

        Raises:
            ModelNotFoundError: There is no such model, or it is private and the token does not see it.
            RevisionNotFoundError: The model has no such revision.
            AccessDeniedError: Its terms have not been accepted, or the token is not valid.
            NetworkError: The hub cannot be reached, or work is offline.
            DownloadFailedError: What the hub says cannot be used.
        """

    @abstractmethod
    def missing_bytes(self, plan: DownloadPlan) -> int:
        """Return how much of a plan is not on this disk yet."""

    @abstractmethod
    def fetch(self, plan: DownloadPlan, progress: Progress, *, verify_present: bool = False) -> None:
        """Bring the files of a plan into the cache; they become visible together, when all of them are whole.

        Every byte is compared with the file's digest. What arrived before a failure, or before the process died, is
        kept and not asked for again. May be called again, also by several processes at once: each file is fetched once.

        Args:
            plan: What to fetch.
            progress: Told the bytes of every file.
            verify_present: Also read the files that are already here, and fetch anew those that are damaged.

        Raises:
            AccessDeniedError, NetworkError, DownloadFailedError: As above; what is right has been kept.
            StorageError: The disk is full or refuses; what is right has been kept.
        """
