"""Using mlx-lm and its siblings without what they do to the process on the way.

``import mlx_lm`` lowers the process's limit on open files, for good where the process may not raise it again, and fails
where the hard limit is lower than it expects. Here the limit stays as it was.

It has transformers read all its thousands of source files twice, to learn which module has which name: a quarter of
what starting the engine costs. Here the second reading is spared.

Loading a model may print to standard output, which is for data, and importing the code of some architectures ends the
program when a package of theirs is missing. Here neither reaches anybody.
"""

import contextlib
import importlib.util
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from mlxk.domain.errors import BackendNotInstalledError, ExecutionError, IncompatibleModelError, MlxkError

_MAX_REASON = 300
"""Characters of what a library printed that are repeated; it is one line, as far as seen."""


@contextlib.contextmanager
def light_imports() -> Iterator[None]:
    """Let imports inside the block neither touch the limit on open files nor read transformers' files twice."""
    import resource

    original = resource.setrlimit
    resource.setrlimit = lambda *_: None
    finder = _ModelsOfTransformers()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        finder.close()
        resource.setrlimit = original


def import_mlx_lm() -> None:
    """Import mlx-lm, so that later imports of its parts find it loaded.

    Raises:
        ImportError: It is not installed.
    """
    with light_imports():
        import mlx_lm  # noqa: F401


def import_failure(error: ImportError, purpose: str, *packages: str) -> MlxkError:
    """Return the error that says why libraries could not be imported: one is absent, or what is installed is broken.

    Args:
        error: What the import raised.
        purpose: What they are wanted for; begins a sentence.
        packages: Those that pip knows by the name of their module, with a hyphen for its underscore.
    """
    module = (error.name or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and module and importlib.util.find_spec(module) is None:
        package = module.replace("_", "-")
        known = package in packages
        return BackendNotInstalledError(
            f"{purpose} needs {package if known else module}, which is not installed.",
            hint=f"Install it: pip install {package}" if known else "See what else is missing: pip check",
        )
    culprit = f"{error.name}, which" if module else "a library that"
    return ExecutionError(
        f"{purpose} needs {culprit} cannot be imported.", hint="See what does not fit together: pip check"
    )


class _ModelsOfTransformers:
    """Waits for the import of ``transformers.models``, which asks for a part of what ``transformers`` has read already.

    What it read is kept by its own cache; only the names are without the prefix.
    """

    def __init__(self) -> None:
        self._reading: Any = None
        self._original: Any = None

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Prepare for the module, and leave finding it to the next finder."""
        if name == "transformers.models" and path is not None:
            self._reading = sys.modules.get("transformers.utils.import_utils")
            self._original = getattr(self._reading, "define_import_structure", None)
            if self._original is not None:
                self._reading.define_import_structure = self._known(Path(*path, "models"))
        return None

    def close(self) -> None:
        """Put back what was there."""
        if self._original is not None:
            self._reading.define_import_structure = self._original

    def _known(self, directory: Path) -> Any:  # noqa: ANN401 - a function of transformers' own types
        def define_import_structure(module_path: str, prefix: str | None = None) -> Any:  # noqa: ANN401
            if prefix is not None or Path(module_path).parent != directory:
                return self._original(module_path, prefix)
            return _without_prefix(self._original(directory, prefix=directory.name), f"{directory.name}.")

        return define_import_structure


def _without_prefix(structure: Mapping[Any, Mapping[str, Any]], prefix: str) -> dict[Any, dict[str, Any]]:
    """Return the names of modules below a prefix, without it; transformers adds others to what it has read."""
    return {
        needed: {name.removeprefix(prefix): objects for name, objects in modules.items() if name.startswith(prefix)}
        for needed, modules in structure.items()
    }


@contextlib.contextmanager
def contained(model: str) -> Iterator[None]:
    """Keep libraries inside the block from writing to standard output and from ending the program.

    Args:
        model: What the block is about, as people call it.

    Raises:
        IncompatibleModelError: A library wanted to end the program; says what it printed before.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    except SystemExit as error:
        reason = " ".join(printed.getvalue().split())[:_MAX_REASON] or "it does not say why"
        raise IncompatibleModelError(f"'{model}' cannot be loaded; its library gives up: {reason}") from error
