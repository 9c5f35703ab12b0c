"""Folders to publish, on the local disk: their files, and the text in them, also in UTF-16, UTF-32 and archives.

Ignore rules are matched by pathspec, as in git: the patterns of the hub client differ in anchors, negation and
directories.
"""

import bz2
import codecs
import contextlib
import functools
import gzip
import hashlib
import io
import lzma
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from pathspec import GitIgnoreSpec

from mlxk.application.ports.hub import PublicationFolder
from mlxk.domain.errors import StorageError, ValidationError
from mlxk.domain.models.snapshot import is_litter
from mlxk.domain.publication import IGNORE_FILE, NEVER_PUBLISHED, USUALLY_IGNORED, ContentDigests, FolderScan, LocalFile

READ_BYTES = 1024 * 1024
MAX_RULES_BYTES = 1024 * 1024
_SAMPLE_BYTES = 8192

MOST_MEMBERS = 2000
"""Files of a ZIP archive that are read."""

MOST_LAYERS = 3
"""Depth of archives inside archives that is read."""

_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_COMPRESSED = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open))
_ZIP = b"PK\x03\x04"
_TAR, _TAR_AT = b"ustar", 257
_SHARE = 0.9
"""Share of zero bytes in the high bytes of UTF-16 without a byte order mark, by which Latin text is recognized."""

_ARCHIVE_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
)


class FilesystemPublicationFolder(PublicationFolder):
    """Reads folders to publish on the local disk."""

    def find(self, path: str) -> str | None:
        if "\0" in path:
            return None
        directory = os.path.realpath(os.path.expanduser(path))
        return directory if os.path.isdir(directory) else None

    def scan(self, directory: str) -> FolderScan:
        rules, never = _rules(directory)
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
                        if _is_ignored(path, rules) or never.match_file(path):
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
        return None if content is None else _text_of(content, limit)

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
    """Whether the rules ignore a path; litter is ignored unless a rule includes it."""
    included = rules.check_file(path).include
    return bool(included) or (included is None and is_litter(path))


def _header(file: BinaryIO, limit: int) -> bytes | None:
    """Return the header of a safetensors file: its length in eight bytes, then JSON."""
    length = int.from_bytes(file.read(8), "little")
    return file.read(length) if length <= limit else None


def _text(file: BinaryIO, limit: int) -> bytes | None:
    """Return the content of a file that may hold text; None for a binary file, and for one above the limit."""
    beginning = file.read(_SAMPLE_BYTES)
    if os.fstat(file.fileno()).st_size > limit or (b"\0" in beginning and not _may_hold_text(beginning)):
        return None
    return beginning + file.read()


def _may_hold_text(beginning: bytes) -> bool:
    """Whether a file with zero bytes may hold text: an archive, or UTF-16 or UTF-32."""
    is_archive = beginning.startswith((_ZIP, *(signature for signature, _ in _COMPRESSED)))
    return is_archive or _is_tar(beginning) or _wide_encoding(beginning) is not None


def _text_of(content: bytes, limit: int, layers: int = MOST_LAYERS) -> str | None:
    """Return the text of a file, for an archive the joined texts of its members; None when it is binary.

    Args:
        content: The whole file.
        limit: Bytes that are unpacked at most; the remainder is not read.
        layers: Depth of archives inside archives that is opened.
    """
    unpacked = _unpacked(content, limit) if layers else None
    if unpacked is not None:
        return "\n".join(filter(None, (_text_of(part, limit, layers - 1) for part in unpacked))) or None
    encoding = _wide_encoding(content[:_SAMPLE_BYTES])
    if encoding is not None:
        return content.decode(encoding, errors="replace")
    if _is_tar(content):
        content = content.replace(b"\0", b"\n")  # members follow one another, padded with zeros
    return None if b"\0" in content else content.decode("utf-8", errors="replace")


def _is_tar(content: bytes) -> bool:
    return content[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR


def _wide_encoding(beginning: bytes) -> str | None:
    """Return ``utf-16`` or ``utf-32``, perhaps with byte order, if the content is such text; else None."""
    for bom, encoding in _BOMS:
        if beginning.startswith(bom):
            return encoding
    even, odd = beginning[::2], beginning[1::2]
    for zeros, letters, encoding in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if len(zeros) > 3 and zeros.count(0) >= _SHARE * len(zeros) and letters.count(0) <= (1 - _SHARE) * len(letters):
            return encoding
    return None


def _unpacked(content: bytes, limit: int) -> list[bytes] | None:
    """Return the readable contents of an archive's members; None when the content is no archive."""
    if content.startswith(_ZIP):
        return list(_members(content, limit))
    for signature, opener in _COMPRESSED:
        if content.startswith(signature):
            return [_bounded(functools.partial(opener, io.BytesIO(content)), limit)]
    return None


def _members(content: bytes, limit: int) -> Iterator[bytes]:
    left = limit
    with contextlib.suppress(*_ARCHIVE_ERRORS), zipfile.ZipFile(io.BytesIO(content)) as archive:
        for member in archive.infolist()[:MOST_MEMBERS]:
            part = _bounded(functools.partial(archive.open, member), left)
            left -= len(part)
            yield part
            if left <= 0:
                return


def _bounded(opener: Callable[[], Any], limit: int) -> bytes:
    """Return the first bytes of a member, up to a limit and to the first damaged one."""
    parts: list[bytes] = []
    with contextlib.suppress(*_ARCHIVE_ERRORS), opener() as file:
        while limit > 0 and (part := file.read1(min(limit, 65536))):
            parts.append(part)
            limit -= len(part)
    return b"".join(parts)


def _rules(directory: str) -> tuple[GitIgnoreSpec, GitIgnoreSpec]:
    """Return the default rules followed by the folder's own, and the rules that it cannot override."""
    try:
        with open(os.path.join(directory, IGNORE_FILE), encoding="utf-8") as file:
            own = file.read(MAX_RULES_BYTES).split("\n")
    except FileNotFoundError:
        own = []
    except UnicodeDecodeError as error:
        raise ValidationError(f"{IGNORE_FILE} is not UTF-8") from error
    except OSError as error:
        raise _unreadable(error) from error
    try:
        return GitIgnoreSpec.from_lines([*USUALLY_IGNORED, *own]), GitIgnoreSpec.from_lines(NEVER_PUBLISHED)
    except (ValueError, re.error) as error:
        raise ValidationError(f"{IGNORE_FILE} has a rule that cannot be understood: {error}") from error


def _stays_inside(directory: str, path: str) -> bool:
    """Whether a link leads to a regular file below the folder."""
    target = os.path.realpath(path)
    return target.startswith(directory + os.sep) and os.path.isfile(target)


def _unreadable(error: OSError) -> StorageError:
    where = os.path.basename(str(error.filename or ""))
    return StorageError(f"the folder cannot be read: {error.strerror}{f' ({where})' if where else ''}")
