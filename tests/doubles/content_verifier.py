"""In-memory double of content verification: it hashes the files of ``InMemoryModelFiles``.

verifier = InMemoryContentVerifier(files, {directory: {"config.json": hashlib.sha256(b"{}").hexdigest()}})
verifier.verify(handle, lambda done, total: None).damaged       # ()
"""

import hashlib
from collections.abc import Callable, Mapping

from doubles.model_files import InMemoryModelFiles
from mlxk.application.ports.model_directories import ContentVerifier, VerificationResult
from mlxk.domain.models.model import ModelHandle


class InMemoryContentVerifier(ContentVerifier):
    """Compares the content of in-memory files with given digests.

    Args:
        files: The files of the models.
        digests: SHA-256 of the content, 64 hexadecimal digits, by directory and path.
    """

    def __init__(
        self, files: InMemoryModelFiles | None = None, digests: Mapping[str, Mapping[str, str]] | None = None
    ) -> None:
        self._files = files or InMemoryModelFiles()
        self.digests = dict(digests or {})

    def verify(self, handle: ModelHandle, progress: Callable[[int, int], None]) -> VerificationResult:
        listing = self._files.list(handle.directory)
        digests = self.digests.get(handle.directory, {})
        known = [entry for entry in listing.files if entry.path in digests]
        total, done = sum(entry.size_bytes for entry in known), 0
        damaged = list(listing.dangling)
        progress(0, total)
        for entry in known:
            content = self._files.read(handle.directory, entry.path, entry.size_bytes) or b""
            if hashlib.sha256(content).hexdigest() != digests[entry.path]:
                damaged.append(entry.path)
            done += entry.size_bytes
            progress(done, total)
        unverifiable = tuple(entry.path for entry in listing.files if entry.path not in digests)
        return VerificationResult(len(known) + len(listing.dangling), unverifiable, tuple(sorted(damaged)))
