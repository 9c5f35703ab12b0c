"""Which architectures the installed MLX libraries can load, read from their files.

mlx-lm has one module an architecture, mlx-vlm and mlx-audio one package; each has a table of other names for them.
Tables are read as text, and a module counts when its text names a ``Model``. Importing one library would take a
second; this takes about a millisecond a library, once a process, and only for the library asked about.
"""

import ast
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from importlib.machinery import PathFinder

import attrs

from mlxk.application.ports.backend_registry import BackendRegistry
from mlxk.domain.models.model import Backend


@attrs.frozen
class _Layout:
    """Where one library keeps what."""

    package: str
    models: str
    """Directory of the architectures, below the package."""
    tables: tuple[tuple[str, str], ...]
    """Modules with a table from alias to architecture, and the table's name."""
    aliases: Mapping[str, str] = attrs.field(factory=dict)
    """Names that the library's code, not its table, maps."""
    lowercase: bool = False
    """Whether the library lowers a model type before it looks it up."""


_LAYOUTS = {
    Backend.MLX_LM: _Layout("mlx_lm", "models", (("utils.py", "MODEL_REMAPPING"),)),
    Backend.MLX_VLM: _Layout(
        "mlx_vlm",
        "models",
        (("embedding_loader.py", "EMBEDDING_MODEL_REMAPPING"), ("utils.py", "MODEL_REMAPPING")),
        lowercase=True,
    ),
    Backend.MLX_AUDIO: _Layout(
        "mlx_audio",
        "stt/models",
        (("stt/utils.py", "MODEL_REMAPPING"),),
        aliases={"nemotron_asr_streaming": "nemotron_asr"},
    ),
}

_MODEL = re.compile(rb"^class Model\b|\bimport\b[^#]*?\bModel\b|^\s+Model,?$|^Model = ", re.MULTILINE)
"""How a module's text names the class the loaders instantiate: defined, imported or assigned."""


@attrs.frozen
class _Library:
    """One installed library, as read."""

    directory: str
    """Of its architectures."""
    architectures: frozenset[str]
    aliases: Mapping[str, str]


class MlxBackendRegistry(BackendRegistry):
    """Reads the libraries that Python would import, without importing them.

    Args:
        search_path: Directories to look for the libraries in; None means where Python would find them.
    """

    def __init__(self, search_path: Sequence[str] | None = None) -> None:
        self._search_path = search_path
        self._libraries: dict[Backend, _Library | None] = {}
        self._answers: dict[tuple[Backend, str], bool] = {}

    def installed(self, backend: Backend) -> bool:
        """Whether the backend's package is installed."""
        return self._library(backend) is not None

    def supports(self, backend: Backend, model_type: str) -> bool:
        """Whether the backend has an implementation of a model type; False when not installed."""
        key = (backend, model_type)
        if key not in self._answers:
            self._answers[key] = self._look_up(backend, model_type)
        return self._answers[key]

    def _look_up(self, backend: Backend, model_type: str) -> bool:
        library = self._library(backend)
        if library is None:
            return False
        name = model_type.lower() if _LAYOUTS[backend].lowercase else model_type
        architecture = library.aliases.get(name, name)
        return architecture in library.architectures and _defines_model(library.directory, architecture)

    def _library(self, backend: Backend) -> _Library | None:
        if backend not in self._libraries:
            layout = _LAYOUTS[backend]
            package = _package_directory(layout.package, self._search_path)
            self._libraries[backend] = None if package is None else _read_library(package, layout)
        return self._libraries[backend]


def _package_directory(package: str, search_path: Sequence[str] | None) -> str | None:
    """Find a top-level package; asking for its spec does not import it."""
    try:
        found = importlib.util.find_spec(package) if search_path is None else PathFinder.find_spec(package, search_path)
    except (ImportError, ValueError):
        return None
    places = list(found.submodule_search_locations or ()) if found else []
    return places[0] if places else None


def _read_library(package: str, layout: _Layout) -> _Library | None:
    directory = os.path.join(package, layout.models)
    try:
        with os.scandir(directory) as entries:
            names = [name for name in (_architecture(entry) for entry in entries) if name]
    except OSError:
        return None
    aliases = dict(layout.aliases)
    for module, table in layout.tables:
        aliases.update(_table(os.path.join(package, module), table))
    return _Library(directory, frozenset(names), aliases)


def _architecture(entry: "os.DirEntry[str]") -> str | None:
    name = entry.name
    if name.startswith(("_", ".")):
        return None
    if name.endswith(".py"):
        return name[:-3]
    return None if "." in name else name


def _table(path: str, name: str) -> dict[str, str]:
    """A module's table of strings, read without parsing the rest of the module; empty when there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, ValueError):
        return {}
    found = re.search(rf"^{name}\b[^=\n]*=\s*(\{{[^{{}}]*\}})", text, re.MULTILINE)
    try:
        entries = ast.literal_eval(found[1]) if found else {}
    except (ValueError, SyntaxError):
        return {}
    return {alias: target for alias, target in entries.items() if isinstance(alias, str) and isinstance(target, str)}


def _defines_model(directory: str, architecture: str) -> bool:
    """Whether a module holds a model, not the building blocks of others."""
    for path in (f"{directory}/{architecture}.py", f"{directory}/{architecture}/__init__.py"):
        try:
            with open(path, "rb") as file:
                return _MODEL.search(file.read()) is not None
        except OSError:
            continue
    return False
