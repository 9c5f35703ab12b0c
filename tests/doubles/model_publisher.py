"""In-memory double of uploads to the hub.

publisher = InMemoryModelPublisher(folder)
publisher.create("me/tiny", private=True)
publisher.publish(Publication("me/tiny", "main", "/home/me/work", changes, "First", None), progress)
"""

import hashlib

import attrs

from doubles.publication_folder import InMemoryPublicationFolder
from mlxk.application.ports.hub import ModelPublisher, Publication, Published
from mlxk.application.ports.system import Progress
from mlxk.domain.errors import AccessDeniedError, UploadFailedError
from mlxk.domain.hub import RemoteFile
from mlxk.domain.publication import RemoteState

ADDRESS = "https://hub.example"


@attrs.define
class PublishedRepository:
    """One repository."""

    private: bool
    branches: dict[str, dict[str, bytes]] = attrs.field(factory=lambda: {"main": {".gitattributes": b""}})
    """The files of each branch: content by path."""
    messages: list[str] = attrs.field(factory=list)
    """Commit messages, oldest first."""


class InMemoryModelPublisher(ModelPublisher):
    """Repositories held in a dictionary.

    Args:
        folder: The local folders that are published.
        token: Whether the user has a token.
    """

    def __init__(self, folder: InMemoryPublicationFolder | None = None, *, token: bool = True) -> None:
        self.repositories: dict[str, PublishedRepository] = {}
        self._folder = folder or InMemoryPublicationFolder()
        self._token = token

    def url(self, name: str) -> str:
        return f"{ADDRESS}/{name}"

    def state(self, name: str, branch: str) -> RemoteState:
        self._require_token()
        repository = self.repositories.get(name)
        if repository is None:
            return RemoteState()
        known = branch if branch in repository.branches else "main"
        files = tuple(_remote_file(path, content) for path, content in sorted(repository.branches[known].items()))
        return RemoteState(True, repository.private, known == branch, _commit(repository, known), files)

    def create(self, name: str, *, private: bool) -> None:
        self._require_token()
        self.repositories.setdefault(name, PublishedRepository(private))

    def create_branch(self, name: str, branch: str) -> None:
        self._require_token()
        branches = self.repositories[name].branches
        branches.setdefault(branch, dict(branches["main"]))

    def publish(self, publication: Publication, progress: Progress) -> Published:
        self._require_token()
        repository = self.repositories[publication.name]
        if publication.parent not in {None, _commit(repository, publication.branch)}:
            raise UploadFailedError(f"somebody else has changed '{publication.name}' meanwhile")
        contents = self._folder.folders[publication.directory]
        sizes = {path: len(contents[path]) for path in publication.changes.uploads}
        progress.begin("Uploading", sizes)
        files = repository.branches[publication.branch]
        files |= {path: contents[path] for path in sizes}
        for path in publication.changes.deleted:
            files.pop(path, None)
        progress.end()
        repository.messages.append(publication.message)
        commit = _commit(repository, publication.branch)
        return Published(commit, f"{self.url(publication.name)}/commit/{commit}")

    def _require_token(self) -> None:
        if not self._token:
            raise AccessDeniedError("pushing needs a token")


def _commit(repository: PublishedRepository, branch: str) -> str:
    what = repr((len(repository.messages), sorted(repository.branches[branch].items())))
    return hashlib.sha1(what.encode(), usedforsecurity=False).hexdigest()


def _remote_file(path: str, content: bytes) -> RemoteFile:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    large = path.endswith(".safetensors")
    return RemoteFile(path, len(content), blob, hashlib.sha256(content).hexdigest() if large else None)
