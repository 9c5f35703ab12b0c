"""What the rules look at: the files of one model at one moment, and what was read of them.

Owns the names of the files that are read and the value that carries them, so that detection and integrity are pure
functions of it. Reading is the work of ``application.snapshot_reading``.
"""

from collections.abc import Mapping

import attrs

from mlxk.domain.documents import ABSENT, Document
from mlxk.domain.model import Origin
from mlxk.domain.model_card import ModelCard
from mlxk.domain.safetensors import SafetensorsHeader

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
PREPROCESSOR_CONFIG = "preprocessor_config.json"
PROCESSOR_CONFIG = "processor_config.json"
SAFETENSORS_INDEX = "model.safetensors.index.json"
PYTORCH_INDEX = "pytorch_model.bin.index.json"
README = "README.md"

LFS_POINTER_LIMIT = 200
"""Bytes; a Git LFS pointer is shorter, and no weight file is."""
LFS_MARKER = b"version https://git-lfs"
"""How a Git LFS pointer begins."""


@attrs.frozen
class ModelSnapshot:
    """The files of one model as they were found."""

    name: str
    """``org/name``, or a workspace's directory."""
    origin: Origin = Origin.CACHE
    incomplete: bool = False
    """Whether the model is cached without any snapshot: a download that never finished a file."""
    files: Mapping[str, int] = attrs.field(factory=dict)
    """Path to size in bytes, of every regular file."""
    dangling: tuple[str, ...] = ()
    """Links whose target is gone, sorted."""
    documents: Mapping[str, Document] = attrs.field(factory=dict)
    """The JSON documents that were read, by path."""
    headers: Mapping[str, SafetensorsHeader] = attrs.field(factory=dict)
    """The header of every safetensors file, by path."""
    pointers: tuple[str, ...] = ()
    """Files that are Git LFS pointers instead of their content, sorted."""
    card: ModelCard = attrs.field(factory=ModelCard)
    template_files: tuple[str, ...] = ()
    """The texts of the chat templates that are files of their own."""
    expected: Mapping[str, int] = attrs.field(factory=dict)
    """Path to size in bytes as the hub recorded them; empty when it recorded nothing."""
    unfinished: int = 0
    """Files left half downloaded beside this model."""
    source_repo: str | None = None
    """The repository a workspace was made from."""
    unread: tuple[str, ...] = ()
    """Files that were listed and then could not be read, because another process removed them or forbids it."""
    cut: tuple[str, ...] = ()
    """JSON documents that were not read whole and do not end as JSON objects do."""
    unreadable: str | None = None
    """Why the directory could not be listed; None when it could."""

    def document(self, path: str) -> Document:
        """Return a document, ``ABSENT`` when it is not there."""
        return self.documents.get(path, ABSENT)

    @property
    def config(self) -> dict[str, object]:
        """``config.json`` when it is an object, else an empty one."""
        return self.document(CONFIG).mapping

    @property
    def from_hub(self) -> bool:
        """Whether a download made it: in a workspace a missing file may as well have been deleted."""
        return self.origin is Origin.CACHE

    @property
    def short_name(self) -> str:
        """The last part of the name, in lower case."""
        return self.name.rstrip("/").rpartition("/")[2].lower()

    def top_level(self, *suffixes: str) -> list[str]:
        """Return the files directly in the directory that end in one of the suffixes, sorted."""
        return sorted(path for path in self.files if path.endswith(suffixes) and "/" not in path)

    def has_any(self, *suffixes: str) -> bool:
        """Whether any file, however deep, ends in one of the suffixes."""
        return any(path.endswith(suffixes) for path in self.files)
