"""Protection against untrusted models: no code that came with a model runs, and loading uses no network.

mlx-vlm and mlx-audio pass directories to libraries that import Python files, unpickle or download if a file in the
directory says so. Such directories are refused before the libraries see them.
"""

import contextlib
import json
from collections.abc import Iterator

from huggingface_hub import constants

from mlxk.adapters.mlx.loading.model_files_check import require_regular
from mlxk.domain.errors import UntrustedModelCodeError
from mlxk.domain.models.model import ModelHandle

CODE_KEYS = ("model_file", "auto_map")
"""Entries of JSON files that name code to execute."""

PICKLES = (".pkl", ".pickle", ".joblib", ".dill")
"""Files that execute code when they are read."""

PICKLED_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".nemo")
"""Weights that may execute code; harmless beside weights in a safe format, which are loaded instead."""

_DATA_FILES = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json", "model.safetensors.index.json"})
"""JSON files of tokens or tensors, without settings; some take a second to parse."""

_MAX_DOCUMENT_BYTES = 32 * 1024 * 1024
_HARMLESS: tuple[object, ...] = (None, {}, [], "")


def refuse_untrusted_code(handle: ModelHandle) -> None:
    """Refuse a model whose loading could execute code that came with it.

    Raises:
        UntrustedModelCodeError: Names the file and the entry.
        UnhealthyModelError: There is no directory, or it holds a file that must not be opened.
    """
    files = require_regular(handle)
    for relative, path in files:
        found = _code_in(relative, path)
        if found:
            raise UntrustedModelCodeError(
                f"'{handle.name}' wants to run code of its own ({relative}: {found}); it is never executed."
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
    """Set the Hugging Face client, which the libraries load with, to offline mode inside the block."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _code_in(relative: str, path: str) -> str | None:
    name = relative.rpartition("/")[2].lower()
    if name.endswith(PICKLES):
        return "a pickle"
    if not name.endswith((".json", ".jsonc")) or name in _DATA_FILES:
        return None
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_DOCUMENT_BYTES + 1)
    except OSError:
        return None
    if len(data) > _MAX_DOCUMENT_BYTES:
        return "a document too large to look through"
    try:
        return _key_of_code(json.loads(data))
    except (ValueError, RecursionError):
        return None


def _key_of_code(document: object) -> str | None:
    """Return the entry that names code, at any depth of a document."""
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            found = next((key for key in CODE_KEYS if value.get(key) not in _HARMLESS), None)
            if found:
                return found
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
    return None
