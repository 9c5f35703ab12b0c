"""The JSON files beside a model's weights: which of them no library could read.

Owns naming the file at fault. What a file must say is known to the libraries that read it.
"""

import os

from mlxk.domain.documents import MAX_DOCUMENT_BYTES, read_document
from mlxk.domain.errors import UnhealthyModelError
from mlxk.domain.model import ModelHandle

SIDE_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "model.safetensors.index.json",
)
"""What the libraries read as JSON objects, where it is there."""

_NEVER_EMPTY = frozenset({"config.json", "tokenizer.json", "model.safetensors.index.json"})


def require_regular(handle: ModelHandle) -> None:
    """Refuse a model with a pipe or a directory where a file belongs: reading a pipe would wait for ever.

    Raises:
        UnhealthyModelError: It has one.
    """
    for name in SIDE_FILES:
        path = os.path.join(handle.directory, name)
        if os.path.exists(path) and not os.path.isfile(path):
            raise UnhealthyModelError(f"{name} of '{handle.name}' is no regular file.", hint=_hint(name))


def unreadable(handle: ModelHandle) -> UnhealthyModelError | None:
    """Return the error that names the first file that is no JSON object; None when all are."""
    for name in SIDE_FILES:
        fault = _fault(os.path.join(handle.directory, name), name)
        if fault is not None:
            return UnhealthyModelError(f"{name} of '{handle.name}' {fault}.", hint=_hint(name))
    return None


def _fault(path: str, name: str) -> str | None:
    if not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as file:
            document = read_document(file.read(MAX_DOCUMENT_BYTES + 1))
    except OSError:
        return "cannot be read"
    if not document.valid:
        return f"contains invalid JSON ({document.problem})" if document.problem else "contains invalid JSON"
    if not isinstance(document.value, dict):
        return "is no JSON object"
    return "is empty" if name in _NEVER_EMPTY and not document.value else None


def _hint(name: str) -> str:
    return f"Download the model again, or take {name} from where its weights come from."
