"""In-memory double of the files of model directories.

files = InMemoryModelFiles({"/cache/org/name/aaaa": {"config.json": b"{}"}})
files.read("/cache/org/name/aaaa", "config.json", limit=100)     # b"{}"
"""

import datetime
import hashlib
from collections.abc import Iterable, Mapping

from mlxk.application.ports.model_directories import FileListing, ModelFiles
from mlxk.domain.errors import StorageError
from mlxk.domain.models.model import FileEntry
from mlxk.domain.models.snapshot import is_litter

EPOCH = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
"""The default modification time of every directory."""


class InMemoryModelFiles(ModelFiles):
    """Files held in dictionaries; change ``directories`` at any time, as another process would change the disk.

    Args:
        directories: The files of each directory: content by path relative to the directory.
        dangling: The dangling links of each directory.
        modified: Modification time of every directory, UTC.
    """

    def __init__(
        self,
        directories: Mapping[str, Mapping[str, bytes]] | None = None,
        dangling: Mapping[str, Iterable[str]] | None = None,
        modified: datetime.datetime = EPOCH,
    ) -> None:
        self.directories: dict[str, dict[str, bytes]] = {
            directory: dict(files) for directory, files in (directories or {}).items()
        }
        self.dangling = dict(dangling or {})
        self.outward: dict[str, tuple[str, ...]] = {}
        """The links out of each directory."""
        self.modified = modified

    def list(self, directory: str) -> FileListing:
        files = self.directories.get(directory)
        if files is None:
            raise StorageError("the model's directory is gone")
        entries = tuple(FileEntry(path, len(content)) for path, content in sorted(files.items()) if not is_litter(path))
        return FileListing(entries, tuple(sorted(self.dangling.get(directory, ()))), self.modified)

    def outward_links(self, directory: str) -> tuple[str, ...]:
        if directory not in self.directories:
            raise StorageError("the model's directory is gone")
        return tuple(sorted((*self.dangling.get(directory, ()), *self.outward.get(directory, ()))))

    def read(self, directory: str, path: str, limit: int) -> bytes | None:
        content = self.directories.get(directory, {}).get(path)
        return None if content is None else content[:limit]

    def read_end(self, directory: str, path: str, limit: int) -> bytes | None:
        content = self.directories.get(directory, {}).get(path)
        return None if content is None else content[max(0, len(content) - limit) :]

    def content_hash(self, directory: str) -> str | None:
        files = self.directories.get(directory)
        if files is None:
            return None
        return f"sha256:{hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()}"
