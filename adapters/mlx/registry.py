"""Finds which architectures the installed MLX libraries can load, by reading their files.

mlx-lm has one module for each architecture, mlx-vlm and mlx-audio have one package; each has tables of aliases. The
tables are read as text, and a module counts when its text has a ``Model``. Importing one library would take a second;
this takes about a millisecond a library, once a process.
"""

import ast
import functools
import glob
import importlib.util
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import PathFinder

import attrs

from mlxk.adapters.mlx import compatibility
from mlxk.adapters.mlx.adapter_files import base_of, read_adapter
from mlxk.adapters.mlx.compatibility import InstalledSupport, Library
from mlxk.adapters.mlx.spoken_families import FAMILIES
from mlxk.application.ports.backends import Adapter, BackendRegistry
from mlxk.domain.errors import CapabilityError
from mlxk.domain.models.detection import Facts
from mlxk.domain.models.model import Capability, Runtime
from mlxk.domain.models.snapshot import ModelSnapshot


@attrs.frozen
class _Layout:
    """The file layout of one library."""

    package: str
    models: str
    """Directory of the architectures within the package."""
    tables: tuple[tuple[str, str], ...]
    """Modules with a table of architectures by alias, and the names of the tables."""
    aliases: Mapping[str, str] = attrs.field(factory=dict)
    """Further aliases, which the library maps in code."""
    lowercase: bool = False
    """Whether the library looks up a model type in lower case."""


_LAYOUTS = {
    Library.MLX_LM: _Layout("mlx_lm", "models", (("utils.py", "MODEL_REMAPPING"),)),
    Library.MLX_VLM: _Layout(
        "mlx_vlm",
        "models",
        (("embedding_loader.py", "EMBEDDING_MODEL_REMAPPING"), ("utils.py", "MODEL_REMAPPING")),
        lowercase=True,
    ),
    Library.MLX_AUDIO: _Layout(
        "mlx_audio",
        "stt/models",
        (("stt/utils.py", "MODEL_REMAPPING"),),
        aliases={"nemotron_asr_streaming": "nemotron_asr"},
    ),
}

_SPOKEN = _Layout("mlx_audio", "tts/models", (("tts/utils.py", "MODEL_REMAPPING"),))
"""mlx-audio's text to speech; ``_LAYOUTS`` has its speech to text."""

_BACKBONES = frozenset({"dense", "llama", "qwen3"})
"""Language models in that directory, which are parts of voices; models of these architectures are no voices."""

_MODEL = re.compile(rb"^class Model\b|\bimport\b[^#]*?\bModel\b|^\s+Model,?$|^Model = ", re.MULTILINE)
"""Matches a module that defines, imports or assigns ``Model``, the class that the loaders instantiate."""


_FP8 = re.compile(rb"weight_scale_inv|\bfrom_fp8\b")
"""Matches a module that converts FP8 weights."""

_WRITING = re.compile(rb"\b(?:self\.|def )language_model\b")
"""Matches a module with a language model, which mlx-vlm needs to generate text."""

_INHERITING = re.compile(rb"^class Model\((?!nn\.)", re.MULTILINE)
"""Matches a module whose ``Model`` inherits from another architecture, and possibly its language model."""

_DIFFUSING = re.compile(rb"^    def generate\(", re.MULTILINE)
"""Matches a module with its own ``generate``, which does not generate one token after the other."""

_INSTEAD = (
    (re.compile(rb"^    decision_types\b", re.MULTILINE), "chooses among given options, and writes no text"),
    (re.compile(rb"^    def get_detections\(", re.MULTILINE), "finds boxes and masks, of which its text has none"),
)
"""Patterns of modules whose models do something else than writing text, and what they do."""

_SIBLING = re.compile(rb"^from \.(\w+) import", re.MULTILINE)


@attrs.frozen
class _Installation:
    """One installed library."""

    directory: str
    """The directory of its architectures."""
    architectures: frozenset[str]
    aliases: Mapping[str, str]


class MlxBackendRegistry(BackendRegistry):
    """Reads the libraries that Python would import, without importing them.

    Args:
        search_path: Directories in which to search for the libraries; None for those of Python.
    """

    def __init__(self, search_path: Sequence[str] | None = None) -> None:
        self._search_path = search_path
        self._installations: dict[str, _Installation | None] = {}
        self._supports: dict[str | None, InstalledSupport] = {}

    def dedicated_to(self, architecture: str) -> Capability | None:
        """Return speech to text or text to speech where an architecture is implemented for that alone; else None."""
        return compatibility.dedicated_to(self._support(architecture))

    def judge(self, snapshot: ModelSnapshot, facts: Facts) -> Runtime:
        """Return which libraries can run a model, or the first reason why none can."""
        return compatibility.judge(snapshot, facts, self._support(facts.architecture))

    def converters(self, media: bool) -> tuple[str, ...]:
        """Return mlx-vlm first for models that take media, mlx-lm first for all others."""
        text, vision = Library.MLX_LM.value, Library.MLX_VLM.value
        return (vision, text) if media else (text, vision)

    def supports(self, backend: str, architecture: str) -> bool:
        """Whether a library is installed and implements an architecture."""
        return any(library.value == backend for library in self._support(architecture).loading)

    def require_quantized_activations(self) -> None:
        """Raise without an NVIDIA GPU: MLX multiplies quantized activations only there.

        Raises:
            CapabilityError: MLX does not compute on an NVIDIA GPU here.
        """
        if sys.platform == "darwin" or computes_on_cpu(sys.platform):
            raise CapabilityError(
                "quantize_activations: only CUDA has products of quantized activations, and no GPU of it computes here",
                hint="Leave it out: quantized weights are computed without it as well.",
            )

    def base_of(self, directory: str) -> str | None:
        """Return the base model that the adapter in a directory names; None for a directory with a model."""
        return base_of(directory)

    def adapter(self, directory: str) -> Adapter:
        """Return the base model and the digest of the adapter in a directory."""
        files = read_adapter(directory)
        return Adapter(files.trained_on, files.digest)

    def installed(self, library: Library) -> bool:
        """Whether a library is installed."""
        return self._installation(_LAYOUTS[library]) is not None

    def _support(self, architecture: str | None) -> InstalledSupport:
        if architecture not in self._supports:
            installed = frozenset(library for library in Library if self.installed(library))
            loading, fp8 = frozenset[Library](), frozenset[Library]()
            if architecture:
                loading = frozenset(
                    library for library in installed if self._implements(_LAYOUTS[library], architecture)
                )
                fp8 = frozenset(library for library in loading if self._loads_fp8(library, architecture))
            speaks = bool(architecture) and not loading and self._speaks(architecture or "")
            lacking = self._lacking(architecture or "") if speaks else ()
            # These matter only where mlx-vlm alone implements the architecture.
            only_vlm = Library.MLX_VLM in loading and Library.MLX_LM not in loading
            text = self._package_text(architecture or "") if only_vlm else b""
            self._supports[architecture] = InstalledSupport(
                installed,
                loading,
                fp8,
                speaks,
                lacking,
                writes=_WRITING.search(text) is not None and _DIFFUSING.search(text) is None,
                instead=_instead(text) if text else None,
            )
        return self._supports[architecture]

    def _package_text(self, architecture: str) -> bytes:
        """Return the joined text of all modules of mlx-vlm's package for an architecture."""
        installation = self._installation(_LAYOUTS[Library.MLX_VLM])
        if installation is None:
            return b""
        name = architecture.lower()
        folder = os.path.join(installation.directory, installation.aliases.get(name, name))
        return b"".join(map(_read, sorted(glob.glob(os.path.join(glob.escape(folder), "*.py")))))

    def _speaks(self, architecture: str) -> bool:
        return architecture not in _BACKBONES and self._implements(_SPOKEN, architecture)

    def _lacking(self, architecture: str) -> tuple[str, ...]:
        """Return the names of packages that a text-to-speech family needs and that are not installed."""
        family = FAMILIES.get(architecture)
        packages = () if family is None else family.packages
        return tuple(each.name for each in packages if _package_directory(each.module, self._search_path) is None)

    def _implements(self, layout: _Layout, architecture: str) -> bool:
        installation = self._installation(layout)
        if installation is None:
            return False
        name = architecture.lower() if layout.lowercase else architecture
        module = installation.aliases.get(name, name)
        return module in installation.architectures and _defines_model(installation.directory, module)

    def _loads_fp8(self, library: Library, architecture: str) -> bool:
        """Whether a library's module for an architecture, or a sibling that it imports, converts FP8 weights."""
        installation = self._installation(_LAYOUTS[library])
        if installation is None or library is Library.MLX_AUDIO:
            return False
        if library is Library.MLX_VLM:
            return os.path.exists(os.path.join(os.path.dirname(installation.directory), "fp8.py"))
        pending, seen = [installation.aliases.get(architecture, architecture)], set[str]()
        while pending:
            module = pending.pop()
            text = b"" if module in seen else _module_text(installation.directory, module)
            seen.add(module)
            if _FP8.search(text):
                return True
            pending += [name.decode() for name in _SIBLING.findall(text)]
        return False

    def _installation(self, layout: _Layout) -> _Installation | None:
        key = os.path.join(layout.package, layout.models)
        if key not in self._installations:
            package = _package_directory(layout.package, self._search_path)
            self._installations[key] = None if package is None else _read_installation(package, layout)
        return self._installations[key]


def _instead(text: bytes) -> str | None:
    """Return what an architecture does instead of writing text, given the text of its modules; None when it writes."""
    predicate = next((predicate for pattern, predicate in _INSTEAD if pattern.search(text)), None)
    writes = _WRITING.search(text) or _INHERITING.search(text)
    return predicate or (None if writes else "writes no text")


def _package_directory(package: str, search_path: Sequence[str] | None) -> str | None:
    """Return the directory of a top-level package without importing it."""
    try:
        found = importlib.util.find_spec(package) if search_path is None else PathFinder.find_spec(package, search_path)
    except (ImportError, ValueError):
        return None
    places = list(found.submodule_search_locations or ()) if found else []
    return places[0] if places else None


def _read_installation(package: str, layout: _Layout) -> _Installation | None:
    directory = os.path.join(package, layout.models)
    try:
        with os.scandir(directory) as entries:
            names = [name for name in (_architecture(entry) for entry in entries) if name]
    except OSError:
        return None
    aliases = dict(layout.aliases)
    for module, table in layout.tables:
        aliases.update(_table(os.path.join(package, module), table))
    return _Installation(directory, frozenset(names), aliases)


def _architecture(entry: "os.DirEntry[str]") -> str | None:
    name = entry.name
    if name.startswith(("_", ".")):
        return None
    if name.endswith(".py"):
        return name[:-3]
    return None if "." in name else name


def _table(path: str, name: str) -> dict[str, str]:
    """Parse a table of strings in a module's text; empty when there is none."""
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
    """Whether a module has a ``Model``, and not only building blocks of other modules."""
    return _MODEL.search(_module_text(directory, architecture)) is not None


@functools.cache
def _module_text(directory: str, architecture: str) -> bytes:
    return _read(f"{directory}/{architecture}.py") or _read(f"{directory}/{architecture}/__init__.py")


def _read(path: str) -> bytes:
    """Return the content of a file; empty when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError):
        return b""


_GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg")
"""Device files of NVIDIA's driver, on Linux and in Windows' subsystem for Linux."""


def has_nvidia_gpu() -> bool:
    """Whether an NVIDIA driver is present, and so a GPU that MLX supports on Linux."""
    return any(map(os.path.exists, _GPU_DEVICES))


def computes_on_cpu(platform: str) -> bool:
    """Whether MLX computes on the CPU here; does not import MLX.

    Args:
        platform: Value of ``sys.platform``; on macOS MLX computes on the GPU.
    """
    if platform == "darwin":
        return False
    found = PathFinder.find_spec("mlx")
    # The backend for NVIDIA GPUs is a separate distribution, installed beside the library.
    places = {os.path.dirname(folder) for folder in (found.submodule_search_locations if found else None) or ()}
    for_gpu = any(name.startswith("mlx_cuda") for place in places for name in os.listdir(place))
    return not (for_gpu and has_nvidia_gpu())
