"""Folders to publish, on the local disk.

Ignore rules are matched by pathspec, as git does: the patterns of the hub client differ in anchors, negation and
directories.
"""

import hashlib
import os
import stat
from collections.abc import Callable
from typing import BinaryIO

from pathspec import GitIgnoreSpec

from mlxk.adapters.filesystem.hidden_text import may_hold_text, text_of
from mlxk.application.ports.publication_folder import PublicationFolder
from mlxk.domain.errors import StorageError, ValidationError
from mlxk.domain.models.weight_files import is_litter
from mlxk.domain.publication import IGNORE_FILE, NEVER_PUBLISHED, USUALLY_IGNORED, ContentDigests, FolderScan, LocalFile

READ_BYTES = 1024 * 1024
MAX_RULES_BYTES = 1024 * 1024
_SAMPLE_BYTES = 8192


class FilesystemPublicationFolder(PublicationFolder):
    """Reads folders to publish on the local disk."""

    def find(self, path: str) -> str | None:
        if "\0" in path:
            return None
        directory = os.path.realpath(os.path.expanduser(path))
        return directory if os.path.isdir(directory) else None

    def scan(self, directory: str) -> FolderScan:
        usual, never = _rules(directory)
        files: list[LocalFile] = []
        outward: list[str] = []
        pending = [""]
        try:
            while pending:
                base = pending.pop()
                with os.scandir(os.path.join(directory, base)) as entries:
                    for entry in entries:
                        folder = entry.is_dir(follow_symlinks=False)
                        path = base + entry.name + ("/" if folder else "")
                        if _is_ignored(path, usual) or never.match_file(path):
                            continue
                        if folder:
                            pending.append(path)
                        elif entry.is_symlink() and not _stays_inside(directory, entry.path):
                            outward.append(path)
                        else:
                            status = entry.stat()
                            if stat.S_ISREG(status.st_mode):
                                files.append(LocalFile(path, status.st_size))
        except OSError as error:
            raise _unreadable(error) from error
        return FolderScan(tuple(sorted(files, key=lambda file: file.path)), tuple(sorted(outward)))

    def text(self, directory: str, path: str, limit: int) -> str | None:
        try:
            with open(os.path.join(directory, path), "rb") as file:
                content = _header(file, limit) if path.endswith(".safetensors") else _text(file, limit)
        except OSError as error:
            raise _unreadable(error) from error
        return None if content is None else text_of(content, limit)

    def digests(self, directory: str, path: str, report: Callable[[int], None]) -> ContentDigests:
        buffer, done = memoryview(bytearray(READ_BYTES)), 0
        try:
            with open(os.path.join(directory, path), "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
                content = hashlib.sha256()
                while count := file.readinto(buffer):
                    content.update(buffer[:count])
                    blob.update(buffer[:count])
                    done += count
                    report(done)
        except OSError as error:
            raise _unreadable(error) from error
        return ContentDigests(content.hexdigest(), blob.hexdigest())


def _is_ignored(path: str, rules: GitIgnoreSpec) -> bool:
    """Whether the rules ignore a file; litter is ignored unless they include it."""
    included = rules.check_file(path).include
    return bool(included) or (included is None and is_litter(path))


def _header(file: BinaryIO, limit: int) -> bytes | None:
    """Return the header of a safetensors file: its length in eight bytes, then JSON."""
    length = int.from_bytes(file.read(8), "little")
    return file.read(length) if length <= limit else None


def _text(file: BinaryIO, limit: int) -> bytes | None:
    """Return the content of a file that may hold text and is not too long."""
    beginning = file.read(_SAMPLE_BYTES)
    if os.fstat(file.fileno()).st_size > limit or (b"\0" in beginning and not may_hold_text(beginning)):
        return None
    return beginning + file.read()


def _rules(directory: str) -> tuple[GitIgnoreSpec, GitIgnoreSpec]:
    """Return the default rules with those of the folder, and the rules that it cannot change."""
    try:
        with open(os.path.join(directory, IGNORE_FILE), encoding="utf-8") as file:
            own = file.read(MAX_RULES_BYTES).splitlines()
    except FileNotFoundError:
        own = []
    except UnicodeDecodeError as error:
        raise ValidationError(f"{IGNORE_FILE} is not UTF-8") from error
    except OSError as error:
        raise _unreadable(error) from error
    try:
        return GitIgnoreSpec.from_lines([*USUALLY_IGNORED, *own]), GitIgnoreSpec.from_lines(NEVER_PUBLISHED)
    except ValueError as error:
        raise ValidationError(f"{IGNORE_FILE} has a rule that cannot be understood: {error}") from error


def _stays_inside(directory: str, path: str) -> bool:
    """Whether a link leads to a regular file below the folder."""
    target = os.path.realpath(path)
    return target.startswith(directory + os.sep) and os.path.isfile(target)


def _unreadable(error: OSError) -> StorageError:
    where = os.path.basename(str(error.filename or ""))
    return StorageError(f"the folder cannot be read: {error.strerror}{f' ({where})' if where else ''}")
