"""The base models of adapters: whether one is on this machine, and whether its weights are those trained on."""

import hashlib
from collections.abc import Callable

import attrs

from mlxk.application.ports.model_directories import ModelFiles
from mlxk.application.ports.system import EventLog
from mlxk.domain.errors import MlxkError
from mlxk.domain.models.model import AdapterBase, ModelHandle
from mlxk.domain.models.snapshot import CONFIG, SAFETENSORS_INDEX
from mlxk.domain.models.weights import SAFETENSORS
from mlxk.domain.tuning.base import MAX_RECORD_BYTES, RECORD, recorded_fingerprint

OTHER_BASE = "the adapter was trained on a model with other weights"
_ENDS_BYTES = 64 * 1024
"""Bytes read at the beginning of a weight file, where the header is, and at its end."""
_DOCUMENT_BYTES = 64 * 1024 * 1024
"""Bytes read of the config and the index."""


def fingerprint(files: ModelFiles, directory: str) -> str:
    """Return a hash of a model's config and weights without reading all tensors.

    It covers ``config.json`` and the index, and of each weight file its name, size, beginning and end.

    Raises:
        StorageError: The directory cannot be read.
    """
    digest = hashlib.sha256()
    for entry in sorted(files.list(directory).files, key=lambda each: each.path):
        is_document = entry.path in (CONFIG, SAFETENSORS_INDEX)
        if not is_document and not entry.path.endswith(SAFETENSORS):
            continue
        digest.update(f"{entry.path}\0{entry.size_bytes}\0".encode())
        digest.update(files.read(directory, entry.path, _DOCUMENT_BYTES if is_document else _ENDS_BYTES) or b"")
        if not is_document:
            digest.update(files.read_end(directory, entry.path, _ENDS_BYTES) or b"")
    return f"sha256:{digest.hexdigest()}"


@attrs.define(eq=False)
class AdapterBases:
    """Finds the base models of adapters, and compares their weights with those trained on. Thread-safe."""

    with_base: Callable[[ModelHandle], ModelHandle]
    """Returns the base of an adapter, with the adapter set; raises ``MlxkError`` when the base is not found."""
    files: ModelFiles
    _warned: set[tuple[str, str]] = attrs.field(factory=set)

    def describe(self, adapter: ModelHandle) -> AdapterBase:
        """Return the base of an adapter, or why there is none; of its weights only the fingerprint is computed."""
        try:
            base = self.with_base(adapter)
        except MlxkError as error:
            return AdapterBase(None, error.message)
        return AdapterBase(base.label, None, self.differs(base, adapter.directory))

    def problem(self, adapter: ModelHandle) -> str | None:
        """Return why the base of an adapter is not found; None when it is. The base's files are not read."""
        try:
            self.with_base(adapter)
        except MlxkError as error:
            return error.message
        return None

    def differs(self, base: ModelHandle, adapter: str) -> bool | None:
        """Whether a model has other weights than the one that an adapter was trained on.

        Args:
            base: The model.
            adapter: Directory of the adapter.

        Returns:
            None when the adapter records no fingerprint, or the model cannot be read.
        """
        recorded = recorded_fingerprint(self.files.read(adapter, RECORD, MAX_RECORD_BYTES))
        try:
            return None if recorded is None else fingerprint(self.files, base.directory) != recorded
        except MlxkError:
            return None

    def warn(self, base: ModelHandle, adapter: str, log: EventLog) -> None:
        """Log a warning, once per pair, when an adapter was trained on other weights than those of the model."""
        pair = (base.directory, adapter)
        if pair not in self._warned:
            self._warned.add(pair)
            if self.differs(base, adapter):
                log.warning(OTHER_BASE, model=base.label, adapter=adapter.rpartition("/")[2])
