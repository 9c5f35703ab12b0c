"""Port: uploads to the hub."""

from abc import abstractmethod
from typing import Protocol

import attrs

from mlxk.application.ports.progress import Progress
from mlxk.domain.publication import ChangeSet, RemoteState


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
