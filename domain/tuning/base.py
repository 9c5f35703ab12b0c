"""The base model of an adapter, by the training record beside the adapter."""

import attrs

from mlxk.domain.models.file_formats import read_document

RECORD = "training.json"
MAX_RECORD_BYTES = 16 * 1024 * 1024


@attrs.frozen
class BaseModel:
    """The base model of an adapter."""

    name: str
    """``org/name``, the name of a built-in model, or a workspace's path relative to the adapter's folder."""
    revision: str | None
    """Revision of a cached model; None for others."""
    content_hash: str | None
    """``sha256:`` and 64 hexadecimal digits, as workspaces have them; None when unknown."""
    hub_name: str | None = None
    """Name on the hub of the model, or of the model that it derives from; None without one."""
    fingerprint: str | None = None
    """Changes with the weights and is computed without reading them all; None when unknown."""


def recorded_fingerprint(content: bytes | None) -> str | None:
    """Return the base model's fingerprint from an untrusted training record; None without a valid one."""
    base = read_document(content or b"", MAX_RECORD_BYTES).mapping.get("base")
    fingerprint = base.get("fingerprint") if isinstance(base, dict) else None
    return fingerprint if isinstance(fingerprint, str) and fingerprint else None
