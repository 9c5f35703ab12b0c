"""Reading the snapshot of a model from its directory.

Decides which files are opened and how much of each is read: each one at most once, except a safetensors header that is
longer than the first read.
"""

from collections.abc import Mapping

import attrs

from mlxk.application.ports.model_cache import ModelCache
from mlxk.application.ports.model_files import FileListing, ModelFiles
from mlxk.domain.models import snapshot as names
from mlxk.domain.models.json_file import MAX_DOCUMENT_BYTES, UNREADABLE, Document, read_document
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.domain.models.safetensors import (
    MAX_HEADER_BYTES,
    PREFIX_BYTES,
    Damage,
    SafetensorsHeader,
    header_span,
    read_header,
)
from mlxk.domain.models.snapshot import (
    MAX_CARD_BYTES,
    TEMPLATE_DOCUMENT,
    TEMPLATE_FILES,
    ModelCard,
    ModelSnapshot,
    read_card,
)

_DOCUMENTS = (
    names.CONFIG,
    names.TOKENIZER_CONFIG,
    names.PREPROCESSOR_CONFIG,
    names.PROCESSOR_CONFIG,
    names.SAFETENSORS_INDEX,
    names.PYTORCH_INDEX,
    TEMPLATE_DOCUMENT,
)
_END_BYTES = 64
"""Enough for the last brace of a JSON object and the white space that some writers add."""
_MAX_TEMPLATE_BYTES = 1024 * 1024
_HEADER_GUESS_BYTES = 32 * 1024
"""Enough for the header of most small files, so that one read suffices."""


def read_snapshot(
    files: ModelFiles,
    cache: ModelCache,
    handle: ModelHandle,
    listing: FileListing,
    source_repo: str | None = None,
    mlx_owner: str | None = None,
) -> ModelSnapshot:
    """Read the snapshot of one model.

    Args:
        files: Read access to its directory.
        cache: Has the hub's listing of its files.
        handle: The model.
        listing: The listing of its files.
        source_repo: The repository a workspace was made from.
        mlx_owner: A hub owner that publishes weights in the format of MLX only.
    """
    sizes = {entry.path: entry.size_bytes for entry in listing.files}
    reader = _Reader(files, handle.directory, sizes)
    cached = handle.origin is Origin.CACHE
    manifest = cache.manifest(handle) if cached else None
    return ModelSnapshot(
        name=handle.name,
        origin=handle.origin,
        incomplete=cached and handle.revision is None,
        files=sizes,
        dangling=listing.dangling,
        documents={path: reader.document(path) for path in _DOCUMENTS if path in sizes},
        headers={path: reader.header(path) for path in sizes if path.endswith(".safetensors")},
        card=reader.card(),
        template_files=reader.templates(),
        pointers=reader.pointers(),
        expected={entry.path: entry.size_bytes for entry in manifest or ()},
        published_for_mlx=mlx_owner is not None
        and (f"{mlx_owner}/" in handle.name or (source_repo or "").startswith(f"{mlx_owner}/")),
        cut=reader.cut(),
        unread=tuple(reader.unread),
    )


@attrs.define
class _Reader:
    """Reads the files of one directory and records unreadable ones."""

    files: ModelFiles
    directory: str
    sizes: Mapping[str, int]
    beginnings: dict[str, bytes] = attrs.field(factory=dict)
    unread: list[str] = attrs.field(factory=list)

    def document(self, path: str) -> Document:
        data = self._read(path, MAX_DOCUMENT_BYTES + 1)
        return UNREADABLE if data is None else read_document(data)

    def header(self, path: str) -> SafetensorsHeader:
        data, size_bytes = self._read(path, _HEADER_GUESS_BYTES), self.sizes[path]
        if data is None:
            return SafetensorsHeader(damage=Damage.INVALID)
        span = header_span(data)
        if len(data) < span <= min(size_bytes, MAX_HEADER_BYTES + PREFIX_BYTES):
            data = self._read(path, span) or data
        return read_header(data, size_bytes)

    def pointers(self) -> tuple[str, ...]:
        """Return the files that are Git LFS pointers; only files as short as pointers are opened."""
        marker = names.LFS_MARKER
        short = [path for path, size in self.sizes.items() if len(marker) < size < names.LFS_POINTER_LIMIT]
        for path in short:
            if path not in self.beginnings:
                self._read(path, len(marker))
        return tuple(path for path in short if self.beginnings[path] == marker)

    def cut(self) -> tuple[str, ...]:
        """Return ``tokenizer.json`` if it does not end as a JSON object does; it is too long to be parsed here."""
        path = names.TOKENIZER
        if path not in self.sizes or path in self.unread:
            return ()
        end = self.files.read_end(self.directory, path, _END_BYTES)
        if end is None:
            self.unread.append(path)
            return ()
        return () if end.rstrip().endswith(b"}") else (path,)

    def card(self) -> ModelCard:
        return read_card(self._read(names.README, MAX_CARD_BYTES) or b"") if names.README in self.sizes else ModelCard()

    def templates(self) -> tuple[str, ...]:
        texts = [self._read(path, _MAX_TEMPLATE_BYTES) or b"" for path in TEMPLATE_FILES if path in self.sizes]
        return tuple(text.decode("utf-8", errors="replace") for text in texts)

    def _read(self, path: str, limit: int) -> bytes | None:
        data = self.files.read(self.directory, path, limit)
        self.beginnings[path] = (data or b"")[: len(names.LFS_MARKER)]
        if data is None:
            self.unread.append(path)
        return data
