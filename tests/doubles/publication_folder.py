"""In-memory double of the publication folder; ignore rules are matched as for folders on disk.

folder = InMemoryPublicationFolder({"/home/me/work": {"config.json": b"{}", ".hfignore": b"*.tmp"}})
folder.scan("/home/me/work").files                  # (LocalFile("config.json", 2),)
"""

import hashlib
import posixpath
import re
from collections.abc import Callable, Mapping

from mlxk.application.ports.hub import PublicationFolder
from mlxk.domain.errors import StorageError, ValidationError
from mlxk.domain.publication import IGNORE_FILE, NEVER_PUBLISHED, USUALLY_IGNORED, ContentDigests, FolderScan, LocalFile


class InMemoryPublicationFolder(PublicationFolder):
    """Folders held in dictionaries.

    Args:
        folders: The files of each absolute directory: content by path.
        outward_links: The links out of each absolute directory.
        working_directory: The base of relative paths.
    """

    def __init__(
        self,
        folders: Mapping[str, Mapping[str, bytes]] | None = None,
        outward_links: Mapping[str, tuple[str, ...]] | None = None,
        working_directory: str = "/home/me",
    ) -> None:
        self.folders = {directory: dict(files) for directory, files in (folders or {}).items()}
        self._outward = dict(outward_links or {})
        self._working_directory = working_directory

    def find(self, path: str) -> str | None:
        directory = posixpath.normpath(posixpath.join(self._working_directory, path))
        return directory if directory in self.folders else None

    def scan(self, directory: str) -> FolderScan:
        from pathspec import GitIgnoreSpec

        files = self._files(directory)
        try:
            own = files.get(IGNORE_FILE, b"").decode().split("\n")
            usual, never = GitIgnoreSpec.from_lines([*USUALLY_IGNORED, *own]), GitIgnoreSpec.from_lines(NEVER_PUBLISHED)
        except UnicodeDecodeError as error:
            raise ValidationError(f"{IGNORE_FILE} is not UTF-8") from error
        except (ValueError, re.error) as error:
            raise ValidationError(f"{IGNORE_FILE} has a rule that cannot be understood: {error}") from error

        def published(path: str) -> bool:
            return not (usual.match_file(path) or never.match_file(path))

        listed = tuple(LocalFile(path, len(content)) for path, content in sorted(files.items()) if published(path))
        return FolderScan(listed, tuple(sorted(filter(published, self._outward.get(directory, ())))))

    def text(self, directory: str, path: str, limit: int) -> str | None:
        content = self._content(directory, path)
        if path.endswith(".safetensors"):
            content = content[8 : 8 + int.from_bytes(content[:8], "little")]
        return None if len(content) > limit or b"\0" in content else content.decode("utf-8", errors="replace")

    def digests(self, directory: str, path: str, report: Callable[[int], None]) -> ContentDigests:
        content = self._content(directory, path)
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        report(len(content))
        return ContentDigests(hashlib.sha256(content).hexdigest(), blob)

    def _files(self, directory: str) -> dict[str, bytes]:
        if directory not in self.folders:
            raise StorageError("the folder cannot be read: No such file or directory")
        return self.folders[directory]

    def _content(self, directory: str, path: str) -> bytes:
        files = self._files(directory)
        if path not in files:
            raise StorageError(f"the folder cannot be read: No such file or directory ({path})")
        return files[path]
