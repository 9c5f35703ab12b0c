"""Loading a model that others made, without running its code and without touching the network.

mlx-vlm and mlx-audio hand directories to libraries that may import Python files, unpickle or download when a directory
asks for it. What asks for it is found here before they see the directory.
"""

import contextlib
import json
from collections.abc import Iterator

from mlxk.adapters.mlx.loading.model_files_check import require_regular
from mlxk.domain.errors import UntrustedModelCodeError
from mlxk.domain.models.model import ModelHandle

CODE_KEYS = ("model_file", "auto_map")
"""Entries of JSON documents that name code to run."""

PICKLES = (".pkl", ".pickle", ".joblib", ".dill")
"""Files that are code by nature."""

PICKLED_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".nemo")
"""Weights that may be code; harmless beside weights in a safe format, which are the ones that are loaded."""

_TABLES = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json", "model.safetensors.index.json"})
"""Documents that name words or tensors, not settings; some are so large that reading them takes a second."""

_MAX_DOCUMENT_BYTES = 32 * 1024 * 1024
_HARMLESS: tuple[object, ...] = (None, {}, [], "")


def refuse_own_code(handle: ModelHandle) -> None:
    """Refuse a directory that asks for code of its own to be run.

    Raises:
        UntrustedModelCodeError: Names the file and what it asks for.
        UnhealthyModelError: There is no directory to look into, or something in it may not be opened.
    """
    files = require_regular(handle)
    for relative, path in files:
        found = _asks_for_code(relative, path)
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
    """Keep the Hugging Face client, which other libraries load with, from the network inside the block."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _asks_for_code(relative: str, path: str) -> str | None:
    name = relative.rpartition("/")[2].lower()
    if name.endswith(PICKLES):
        return "a pickle"
    if not name.endswith((".json", ".jsonc")) or name in _TABLES:
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
    """Return the entry that names code, wherever in a document it stands."""
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
