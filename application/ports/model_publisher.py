"""Port: publishing models on the hub."""

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
    """The folder the files are in, absolute."""
    changes: ChangeSet
    message: str
    parent: str | None
    """The commit that the changes were compared with; the hub refuses when the branch has moved."""


@attrs.frozen
class Published:
    """One commit that was made."""

    commit: str
    url: str
    log: tuple[str, ...] = ()
    """What the hub client had to say."""


class ModelPublisher(Protocol):
    """Writes to the hub as the owner of the token. Every request has a time limit."""

    @abstractmethod
    def url(self, name: str) -> str:
        """Return the address of a repository."""

    @abstractmethod
    def state(self, name: str, branch: str) -> RemoteState:
        """Return a repository as it is; one that the token may not see does not exist.

        Raises:
            AccessDeniedError: There is no token, or it is not valid.
            NetworkError, DownloadFailedError: As in ``ModelHub``.
        """

    @abstractmethod
    def create(self, name: str, *, private: bool) -> None:
        """Create a repository; one that is there already is left as it is.

        Raises:
            AccessDeniedError: The token may not.
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
        """Upload the files and make one commit. Files that an earlier attempt uploaded are not sent again.

        Raises:
            UploadFailedError: The branch has moved, or the hub refuses; nothing was committed.
            AccessDeniedError, NetworkError: As above.
        """
