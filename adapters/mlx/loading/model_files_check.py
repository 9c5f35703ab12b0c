"""Checks of a model's files: regular files only, and valid JSON where the libraries expect it.

The checks name the file at fault; the required content is checked by the libraries.
"""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from mlxk.domain.errors import UnhealthyModelError
from mlxk.domain.models.file_formats import MAX_DOCUMENT_BYTES, read_document
from mlxk.domain.models.model import ModelHandle

JSON_FILES = (
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
"""Files that the libraries read as JSON objects if they exist."""

_NEVER_EMPTY = frozenset({"config.json", "tokenizer.json", "model.safetensors.index.json"})

_IGNORED_WHEN_INVALID = frozenset({"generation_config.json"})
"""Files that every library ignores when they are not JSON."""

_MAX_DEPTH = 4
"""Levels of subdirectories that are checked; no library opens anything deeper."""


def require_regular(handle: ModelHandle) -> list[tuple[str, str]]:
    """Refuse a model with a pipe, a socket or a device among its files: opening one may block indefinitely.

    Links to files are followed, links to directories are not.

    Returns:
        The files, sorted: the name below the directory, and the path.

    Raises:
        UnhealthyModelError: There is one, or there is no directory.
    """
    if not os.path.isabs(handle.directory) or not os.path.isdir(handle.directory):
        raise UnhealthyModelError(f"'{handle.name}' has no directory to load from.")
    files = list(_files(handle.directory))
    for name, path in files:
        if not os.path.isfile(path) and not os.path.isdir(path) and os.path.exists(path):
            raise UnhealthyModelError(f"{name} of '{handle.name}' is no regular file.", hint=_hint(name))
    return files


def object_in(handle: ModelHandle, name: str) -> Mapping[str, Any] | None:
    """Return the JSON object in a file of a model; None when there is no regular file or no object in it."""
    value = json_in(handle, name)
    return value if isinstance(value, dict) else None


def json_in(handle: ModelHandle, name: str) -> object:
    """Return the JSON value in a file of a model; None when there is no regular file or no JSON in it."""
    path = os.path.join(handle.directory, name)
    # A name that a model's own files state may lead out of its folder.
    if name.startswith("/") or ".." in name.split("/") or not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as file:
            value: object = json.loads(file.read(MAX_DOCUMENT_BYTES + 1))
    except (OSError, ValueError, RecursionError):
        return None
    return value


def json_fault(handle: ModelHandle) -> UnhealthyModelError | None:
    """Return an error for the first file that is not the JSON object it must be; None when all are."""
    for name in JSON_FILES:
        fault = _fault(os.path.join(handle.directory, name), name)
        if fault is not None:
            return UnhealthyModelError(f"{name} of '{handle.name}' {fault}.", hint=_hint(name))
    return None


def _files(directory: str, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            if not entry.is_dir(follow_symlinks=False):
                yield f"{prefix}{entry.name}", entry.path
            elif depth < _MAX_DEPTH:
                yield from _files(entry.path, f"{prefix}{entry.name}/", depth + 1)


def _fault(path: str, name: str) -> str | None:
    if not os.path.isfile(path):
        return "is no regular file" if os.path.exists(path) else None
    try:
        with open(path, "rb") as file:
            document = read_document(file.read(MAX_DOCUMENT_BYTES + 1))
    except OSError:
        return "cannot be read"
    if document.problem == "" and name in _IGNORED_WHEN_INVALID:
        return None
    if not document.valid:
        return f"contains invalid JSON ({document.problem})" if document.problem else "contains invalid JSON"
    if not isinstance(document.value, dict):
        return "is no JSON object"
    return "is empty" if name in _NEVER_EMPTY and not document.value else None


def _hint(name: str) -> str:
    return f"Download the model again, or take {name} from where its weights come from."
