"""The model that an adapter was trained on, as the record beside the adapter names it."""

import attrs

from mlxk.domain.models.file_formats import read_document

RECORD = "training.json"
MAX_RECORD_BYTES = 16 * 1024 * 1024


@attrs.frozen
class BaseModel:
    """The model that was trained on."""

    name: str
    """``org/name``, the name of a built-in model, or the path of a workspace as seen from the folder of the adapter."""
    revision: str | None
    """Of a cached model."""
    content_hash: str | None
    """``sha256:`` and 64 hexadecimal digits, as workspaces have them."""
    hub_name: str | None = None
    """The name of the model, or of what it was made of, on the hub; None without one."""
    fingerprint: str | None = None
    """What changes with its weights and can be had without reading them all; None when unknown."""


def recorded_fingerprint(content: bytes | None) -> str | None:
    """Return the fingerprint of the base in a record, read without trust; None where there is none."""
    base = read_document(content or b"", MAX_RECORD_BYTES).mapping.get("base")
    known = base.get("fingerprint") if isinstance(base, dict) else None
    return known if isinstance(known, str) and known else None
