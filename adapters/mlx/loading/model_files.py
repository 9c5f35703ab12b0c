"""Checks of a model's files before a library reads them: regular files, valid JSON, no code, no stray weights.

Errors name the file at fault; the libraries check the content that they require. mlx-vlm and mlx-audio pass directories
to libraries that import Python files, unpickle or download if a file in the directory says so: such directories are
refused before the libraries see them, and loading uses no network. The libraries load every weight file that matches
their pattern, in the order of the directory; ``domain.models.weights`` decides which of them belong to the model.
"""

import contextlib
import functools
import io
import json
import os
import resource
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from transformers.utils import logging

from mlxk.adapters.mlx.adapter_files import state_of
from mlxk.adapters.mlx.weight_headers import header_of
from mlxk.domain.errors import StorageError, UnhealthyModelError, UntrustedModelCodeError
from mlxk.domain.models.file_formats import (
    MAX_DOCUMENT_BYTES,
    SafetensorsHeader,
    read_document,
)
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.models.snapshot import (
    SAFETENSORS_INDEX,
    TEMPLATE_FOLDER,
    is_litter,
)
from mlxk.domain.models.weights import SAFETENSORS, indexed_files, stray_weights

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

_SPARE_DESCRIPTORS = 24
"""File descriptors reserved for other work of the process while weights are read."""

_MAX_DEPTH = 4
"""Levels of subdirectories that are checked; no library opens anything deeper."""


def require_regular(handle: ModelHandle) -> list[tuple[str, str]]:
    """Refuse a model with a pipe, a socket or a device among its files: opening one may block indefinitely.

    Links to files are followed, links to directories are not.

    Returns:
        The relative name and the path of each file, sorted.

    Raises:
        UnhealthyModelError: There is such a file, or there is no directory.
    """
    if not os.path.isabs(handle.directory) or not os.path.isdir(handle.directory):
        raise UnhealthyModelError(f"'{handle.name}' has no directory to load from.")
    files = list(_files(handle.directory))
    for name, path in files:
        if not os.path.isfile(path) and not os.path.isdir(path) and os.path.exists(path):
            raise UnhealthyModelError(f"{name} of '{handle.name}' is no regular file.", hint=_hint(name))
    return files


def object_in(handle: ModelHandle, name: str) -> Mapping[str, Any] | None:
    """Return the JSON object in a file of a model; None if it is no regular file or holds no object."""
    value = json_in(handle, name)
    return value if isinstance(value, dict) else None


def json_in(handle: ModelHandle, name: str) -> object:
    """Return the JSON value in a file of a model; None if it is no regular file or holds no JSON."""
    path = os.path.join(handle.directory, name)
    # The name may come from the model's own files, and must not lead out of its directory.
    if name.startswith("/") or ".." in name.split("/") or not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as file:
            value: object = json.loads(file.read(MAX_DOCUMENT_BYTES + 1))
    except (OSError, ValueError, RecursionError):
        return None
    return value


def json_fault(handle: ModelHandle) -> UnhealthyModelError | None:
    """Return an error for the first of ``JSON_FILES`` that is not a valid JSON object; None if there is none."""
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


CODE_KEYS = ("model_file", "auto_map")
"""Entries of JSON files that name code to execute."""

PICKLES = (".pkl", ".pickle", ".joblib", ".dill")
"""Files that execute code when they are read."""

PICKLED_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".nemo")
"""Weights that may execute code; harmless beside weights in a safe format, which the libraries load instead."""

_DATA_FILES = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json", "model.safetensors.index.json"})
"""JSON files of tokens or tensors, which are not searched for code: they hold no settings and are large."""

_MAX_SEARCHED_BYTES = 32 * 1024 * 1024
_HARMLESS: tuple[object, ...] = (None, {}, [], "")


def refuse_untrusted_code(handle: ModelHandle, followed: Sequence[str] = CODE_KEYS) -> None:
    """Refuse a model whose loading could execute code that came with it.

    Args:
        handle: The model.
        followed: The ``CODE_KEYS`` that the loading library acts on.

    Raises:
        UntrustedModelCodeError: Names the file and the entry.
        UnhealthyModelError: See ``require_regular``.
    """
    files = require_regular(handle)
    for relative, path in files:
        code = _code_in(relative, path, followed)
        if code:
            raise UntrustedModelCodeError(
                f"'{handle.name}' wants to run code of its own ({relative}: {code}); it is never executed."
            )
    safe = any(name.endswith((".safetensors", ".npz", ".gguf")) for name, _ in files)
    pickled = next((name for name, _ in files if name.endswith(PICKLED_WEIGHTS)), None)
    if pickled and not safe:
        raise UntrustedModelCodeError(
            f"'{handle.name}' has its weights only as a pickle ({pickled}), which may be code; it is never loaded.",
            hint="Use a version of the model with weights in safetensors files.",
        )


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Set the Hugging Face client, which the libraries use, to offline mode inside the block."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Suppress warnings, and the libraries' output on standard output, inside the block."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)


def _code_in(relative: str, path: str, followed: Sequence[str]) -> str | None:
    name = relative.rpartition("/")[2].lower()
    if name.endswith(PICKLES):
        return "a pickle"
    if not name.endswith((".json", ".jsonc")) or name in _DATA_FILES:
        return None
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_SEARCHED_BYTES + 1)
    except OSError:
        return None
    if len(data) > _MAX_SEARCHED_BYTES:
        return "a document too large to look through"
    try:
        return _key_of_code(json.loads(data), followed)
    except (ValueError, RecursionError):
        return None


def _key_of_code(document: object, followed: Sequence[str]) -> str | None:
    """Return the key of an entry that names code, at any depth of a document; None if there is none."""
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            code = next((key for key in followed if value.get(key) not in _HARMLESS), None)
            if code:
                return code
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
    return None


@contextlib.contextmanager
def loading_directory(handle: ModelHandle) -> Iterator[Path]:
    """Yield a directory with the model's weights only: its own, or a temporary one of links that omits stray files.

    Weights stay readable after the block: MLX keeps the files open that it reads later.

    Raises:
        StorageError: The process may not have that many files open.
    """
    files = _without_litter(handle.directory)
    strays = _strays(handle.directory, files)
    _require_descriptors(handle, sum(path.endswith(SAFETENSORS) and path not in strays for path in files))
    if not strays and not _has_template_litter(handle.directory):
        yield Path(handle.directory)
        return
    with tempfile.TemporaryDirectory(prefix="mlxk-model-") as view:
        for path in files:
            if path not in strays:
                link = os.path.join(view, path)
                os.makedirs(os.path.dirname(link), exist_ok=True)
                os.symlink(os.path.join(handle.directory, path), link)
        yield Path(view)


def _require_descriptors(handle: ModelHandle, files: int) -> None:
    """Refuse a model whose weight files would use up the process's file descriptors.

    Raises:
        StorageError: There are too many files.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(os.listdir("/dev/fd")) + files + _SPARE_DESCRIPTORS
    if files > 1 and soft != resource.RLIM_INFINITY and needed > soft:
        raise StorageError(
            f"'{handle.name}' has {files} files of weights, and this process may have {soft} files open",
            hint=f"Raise the limit: ulimit -n {max(needed, 1024)}",
        )


def weight_files(directory: str) -> list[str]:
    """Return the paths of the model's safetensors files at the top level of a directory, sorted."""
    files = _without_litter(directory)
    strays = _strays(directory, files)
    return [
        os.path.join(directory, path)
        for path in files
        if path.endswith(SAFETENSORS) and "/" not in path and path not in strays
    ]


def _has_template_litter(directory: str) -> bool:
    """Whether litter is among the chat templates, where the tokenizer's loader would read it."""
    try:
        names = os.listdir(os.path.join(directory, TEMPLATE_FOLDER))
    except OSError:
        return False
    return any(is_litter(name) and name.endswith(".jinja") for name in names)


def _strays(directory: str, files: list[str]) -> frozenset[str]:
    read = (path for path in files if path.endswith(SAFETENSORS) or path == SAFETENSORS_INDEX)
    return _cached_strays(directory, tuple(files), tuple(_state(os.path.join(directory, path)) for path in read))


@functools.lru_cache(maxsize=16)
def _cached_strays(directory: str, files: tuple[str, ...], states: tuple[object, ...]) -> frozenset[str]:
    """Return the stray weight files; cached, since every request needs them and reading all headers is slow.

    Args:
        directory: The model's directory.
        files: Relative paths of its files.
        states: ``_state`` of each file that is read; part of the cache key.
    """
    weights = [path for path in files if path.endswith(SAFETENSORS)]
    index = _index(directory) if SAFETENSORS_INDEX in files else frozenset()
    tensors = {path: _header(directory, path).tensors for path in weights} if len(weights) > 1 else None
    return frozenset(stray_weights(files, index, tensors))


def _state(path: str) -> tuple[int, ...]:
    try:
        stat = os.stat(path)
    except OSError:
        return ()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _index(directory: str) -> frozenset[str]:
    try:
        with open(os.path.join(directory, SAFETENSORS_INDEX), "rb") as file:
            return indexed_files(read_document(file.read(MAX_DOCUMENT_BYTES + 1)).mapping)
    except OSError:
        return frozenset()


def _header(directory: str, path: str) -> SafetensorsHeader:
    try:
        return header_of(os.path.join(directory, path))
    except OSError:
        return SafetensorsHeader()


def _without_litter(directory: str, prefix: str = "", depth: int = 0) -> list[str]:
    """Return the relative paths of the regular files, sorted; links to files are followed, to directories not."""
    files: list[str] = []
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            path = prefix + entry.name
            if is_litter(path) or is_litter(f"{path}/"):
                continue
            if entry.is_dir(follow_symlinks=False):
                files += _without_litter(entry.path, f"{path}/", depth + 1) if depth < _MAX_DEPTH else []
            elif entry.is_file():
                files.append(path)
    return files


def weight_bytes(directory: str) -> int:
    """Return the size of the weight files, bytes; 0 without any."""
    return sum(os.stat(path).st_size for path in weight_files(directory))


def read_config(handle: ModelHandle) -> Mapping[str, Any]:
    """Return a model's config.json.

    Raises:
        UnhealthyModelError: It is missing or cannot be read.
        UntrustedModelCodeError: Loading would execute code that came with the model.
    """
    config = object_in(handle, "config.json")
    if not config:
        raise UnhealthyModelError(f"'{handle.name}' has no readable config.json.", hint="Download the model again.")
    if config.get("model_file"):
        raise UntrustedModelCodeError(
            f"'{handle.name}' wants to run code of its own (config.json: model_file); it is never executed."
        )
    return config


def identity_of(handle: ModelHandle, adapter: str | None = None) -> str:
    """Return a key that changes with a model, its adapter, and the state of their files.

    Raises:
        ValidationError: The directory holds no adapter.
    """
    parts = [handle.directory, handle.revision or "", adapter or ""]
    for path in [os.path.join(handle.directory, "config.json"), *weight_files(handle.directory)]:
        stat = os.stat(path) if os.path.exists(path) else None
        parts.append(f"{stat.st_mtime_ns}:{stat.st_size}" if stat else "-")
    return "|".join([*parts, *(state_of(adapter) if adapter is not None else ())])
