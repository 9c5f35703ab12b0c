"""The weight files that belong to a model, and a directory in which the libraries find no others.

The libraries load every file that fits their pattern, in the order of the directory. Which files are the model is
decided in ``domain.models.weights``, here from what is on disk.
"""

import contextlib
import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlxk.domain.models.file_formats import (
    MAX_DOCUMENT_BYTES,
    MAX_HEADER_BYTES,
    PREFIX_BYTES,
    SafetensorsHeader,
    header_span,
    read_document,
    read_header,
)
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.models.snapshot import SAFETENSORS_INDEX, TEMPLATE_FOLDER
from mlxk.domain.models.weights import SAFETENSORS, indexed_files, is_litter, stray_weights

_MAX_DEPTH = 4
"""Levels of subdirectories; no library opens anything deeper."""


@contextlib.contextmanager
def loading_directory(handle: ModelHandle) -> Iterator[Path]:
    """Return a directory whose weights are those of the model: its own, or links to its files without the strays.

    Weights stay readable after the block: MLX holds the files that it reads later.
    """
    files = _files(handle.directory)
    strays = _strays(handle.directory, files)
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


def weight_files(directory: str) -> list[str]:
    """Return the paths of the model's safetensors files directly in a directory, sorted."""
    files = _files(directory)
    strays = _strays(directory, files)
    return [
        os.path.join(directory, path)
        for path in files
        if path.endswith(SAFETENSORS) and "/" not in path and path not in strays
    ]


def _has_template_litter(directory: str) -> bool:
    """Whether there is litter among the chat templates, which the loader of tokenizers would read."""
    try:
        names = os.listdir(os.path.join(directory, TEMPLATE_FOLDER))
    except OSError:
        return False
    return any(is_litter(name) and name.endswith(".jinja") for name in names)


def _strays(directory: str, files: list[str]) -> frozenset[str]:
    read = (path for path in files if path.endswith(SAFETENSORS) or path == SAFETENSORS_INDEX)
    return _found_strays(directory, tuple(files), tuple(_state(os.path.join(directory, path)) for path in read))


@functools.lru_cache(maxsize=16)
def _found_strays(directory: str, files: tuple[str, ...], states: tuple[object, ...]) -> frozenset[str]:
    """Return the strays among some files; they are asked for with every request, and reading all headers takes long.

    Args:
        directory: Of the model.
        files: The paths in it.
        states: Change with the files that are read.
    """
    weights = [path for path in files if path.endswith(SAFETENSORS)]
    index = _index(directory) if SAFETENSORS_INDEX in files else frozenset()
    tensors = {path: _header(directory, path).tensors for path in weights} if len(weights) > 1 else None
    return frozenset(stray_weights(files, index, tensors))


def _state(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _index(directory: str) -> frozenset[str]:
    try:
        with open(os.path.join(directory, SAFETENSORS_INDEX), "rb") as file:
            return indexed_files(read_document(file.read(MAX_DOCUMENT_BYTES + 1)).mapping)
    except OSError:
        return frozenset()


def _header(directory: str, path: str) -> SafetensorsHeader:
    try:
        with open(os.path.join(directory, path), "rb") as file:
            size, prefix = os.fstat(file.fileno()).st_size, file.read(PREFIX_BYTES)
            return read_header(
                prefix + file.read(min(header_span(prefix), MAX_HEADER_BYTES + PREFIX_BYTES) - PREFIX_BYTES), size
            )
    except OSError:
        return SafetensorsHeader()


def _files(directory: str, prefix: str = "", depth: int = 0) -> list[str]:
    """Return the regular files, links followed, sorted; links to directories are not."""
    found: list[str] = []
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            path = prefix + entry.name
            if is_litter(path) or is_litter(f"{path}/"):
                continue
            if entry.is_dir(follow_symlinks=False):
                found += _files(entry.path, f"{path}/", depth + 1) if depth < _MAX_DEPTH else []
            elif entry.is_file():
                found.append(path)
    return found
