"""The direction of imports, checked by import-linter, and that the check would notice."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

Sources = dict[str, ast.Module]
LAYERS = ("domain", "application", "adapters", "entrypoints", "contracts")

CORE, POINT_INWARD = "The core is free of frameworks and of the machine", "Layers point inward"
FORBIDDEN = {
    "a framework in the domain": ("domain/models/model.py", "falcon", CORE),
    "the operating system in the application": ("application/ports/system.py", "os", CORE),
    "an outer layer in an inner one": ("domain/models/model.py", "mlxk.application.ports.system", POINT_INWARD),
    "an adapter in another adapter": (
        "adapters/system/__init__.py",
        "mlxk.adapters.builtin",
        "Adapters do not know each other",
    ),
    "a use case in an adapter": (
        "adapters/system/__init__.py",
        "mlxk.application.use_cases.inspect_models",
        "Adapters see ports, never use cases",
    ),
    "an adapter in an entrypoint": (
        "entrypoints/cli/render/formatting.py",
        "mlxk.adapters.system",
        "Only the composition root names adapters",
    ),
    "an entrypoint in another entrypoint": (
        "entrypoints/http/errors.py",
        "mlxk.entrypoints.cli.render.formatting",
        "Ways in do not know each other",
    ),
    "a cycle": ("domain/errors.py", "mlxk.domain.models.reference", "No cycles between siblings"),
}
"""What is written where, and the contract that it breaks."""


def test_imports_keep_to_the_contracts(root: Path) -> None:
    done = lint(root, root / "src")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("path", "module", "contract"), FORBIDDEN.values(), ids=FORBIDDEN)
def test_a_forbidden_import_is_noticed(root: Path, tmp_path: Path, path: str, module: str, contract: str) -> None:
    for layer in LAYERS:
        pattern = shutil.ignore_patterns("__pycache__", "*.json", "*.safetensors")
        shutil.copytree(root / layer, tmp_path / "mlxk" / layer, ignore=pattern)
    shutil.copy(root / "src" / "mlxk" / "__init__.py", tmp_path / "mlxk")
    shutil.copy(root / "pyproject.toml", tmp_path)
    source = tmp_path / "mlxk" / path
    source.write_text(f"{source.read_text(encoding='utf-8')}\nimport {module}\n", encoding="utf-8")
    done = lint(tmp_path, tmp_path)
    assert done.returncode == 1
    assert f"{contract} BROKEN" in done.stdout


def test_dependency_injector_is_imported_in_one_place(product: Sources) -> None:
    importers = {path for path, tree in product.items() if "dependency_injector" in imported(tree)}
    assert importers == {"entrypoints/providers.py"}


def lint(folder: Path, source: Path) -> "subprocess.CompletedProcess[str]":
    """Run import-linter with the configuration of a folder on the package found through a source path."""
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [program, "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def imported(tree: ast.Module) -> set[str]:
    """Return the top-level names of the modules a file imports, anywhere in it."""
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[0] for name in names}
