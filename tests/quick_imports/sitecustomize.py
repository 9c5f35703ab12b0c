"""Programs that tests start import transformers sooner: what its import finds in its sources is kept in a file.

Python imports a module of this name before anything else where its folder is on ``PYTHONPATH``. At every start,
transformers reads its 3,000 source files twice, to learn which name lies in which of them: a quarter of the processor
time of ``mlxk run demo``. What the first program read is kept here as Python keeps bytecode, until the sources change.
"""

import functools
import importlib.abc
import importlib.machinery
import marshal
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

LIBRARY = "transformers.utils.import_utils"
_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__pycache__")


class QuickImports(importlib.abc.MetaPathFinder):
    """Finds the module of transformers that reads the sources, with a loader that has it remember what it read."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return None for every other module."""
        if name != LIBRARY:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        module.define_import_structure = remembering(module.define_import_structure)  # type: ignore[attr-defined]


def remembering(read: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same function, which reads the folder of all models only where no file says what is in it."""

    @functools.wraps(read)
    def define_import_structure(module_path: str | os.PathLike[str], prefix: str | None = None) -> Any:
        path = os.fspath(module_path)
        folder = os.path.dirname(path) if path.endswith(".py") else path
        if os.path.basename(folder) != "models":
            return read(module_path, prefix)
        kept = os.path.join(_FOLDER, _name(folder, prefix))
        try:
            with open(kept, "rb") as file:
                return marshal.load(file)
        except (OSError, ValueError, EOFError, TypeError):
            structure = read(module_path, prefix)
            _write(kept, marshal.dumps(structure))
            return structure

    return define_import_structure


def _name(folder: str, prefix: str | None) -> str:
    """Return the name of the file for these sources and this Python."""
    state = os.stat(os.path.join(folder, "__init__.py"))
    sources = zlib.crc32(f"{folder} {state.st_mtime_ns} {state.st_size} {prefix}".encode())
    return f"names-{sources:08x}.{sys.implementation.cache_tag}"


def _write(path: str, content: bytes) -> None:
    """Write a file at once or, where nothing can be written, not."""
    temporary = f"{path}.{os.getpid()}"
    try:
        os.makedirs(_FOLDER, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError:
        return


sys.meta_path.insert(0, QuickImports())
