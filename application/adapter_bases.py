"""The bases of adapters: whether one is on this machine, and whether the adapter was trained on it."""

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
"""Bytes of a file of weights that are read at its beginning, where the header is, and at its end."""
_WHOLE_BYTES = 64 * 1024 * 1024


def fingerprint(files: ModelFiles, directory: str) -> str:
    """Return what changes with the config and the weights of a model, from their sizes and the ends of each file.

    Raises:
        StorageError: The directory cannot be read.
    """
    found = hashlib.sha256()
    for entry in sorted(files.list(directory).files, key=lambda each: each.path):
        described = entry.path in (CONFIG, SAFETENSORS_INDEX)
        if not described and not entry.path.endswith(SAFETENSORS):
            continue
        found.update(f"{entry.path}\0{entry.size_bytes}\0".encode())
        found.update(files.read(directory, entry.path, _WHOLE_BYTES if described else _ENDS_BYTES) or b"")
        if not described:
            found.update(files.read_end(directory, entry.path, _ENDS_BYTES) or b"")
    return f"sha256:{found.hexdigest()}"


@attrs.define(eq=False)
class AdapterBases:
    """Finds the bases of adapters, and compares them with what was trained on. Thread-safe."""

    with_base: Callable[[ModelHandle], ModelHandle]
    """Returns the base of an adapter, with the adapter; raises where it is not here."""
    files: ModelFiles
    _warned: set[tuple[str, str]] = attrs.field(factory=set)

    def of(self, adapter: ModelHandle) -> AdapterBase:
        """Return what is known of the base of an adapter alone; reads little."""
        try:
            base = self.with_base(adapter)
        except MlxkError as error:
            return AdapterBase(None, error.message)
        return AdapterBase(base.label, None, self.differs(base, adapter.directory))

    def problem(self, adapter: ModelHandle) -> str | None:
        """Return why an adapter has no base here; None where it has one. Nothing of the base is read."""
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
            None where the adapter does not say, or the model cannot be read.
        """
        known = recorded_fingerprint(self.files.read(adapter, RECORD, MAX_RECORD_BYTES))
        try:
            return None if known is None else fingerprint(self.files, base.directory) != known
        except MlxkError:
            return None

    def warn(self, base: ModelHandle, adapter: str, log: EventLog) -> None:
        """Record, once for each, that an adapter was trained on another model than the one that it is used with."""
        pair = (base.directory, adapter)
        if pair not in self._warned:
            self._warned.add(pair)
            if self.differs(base, adapter):
                log.warning(OTHER_BASE, model=base.label, adapter=adapter.rpartition("/")[2])
