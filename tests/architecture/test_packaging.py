"""What is installed: only ``mlxk``, all of it, with the versions that were tested."""

import ast
import fnmatch
import importlib.metadata
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LAYERS = ("domain", "application", "adapters", "entrypoints", "contracts")
STACK = ("mlx", "mlx-lm", "mlx-vlm", "mlx-audio", "transformers")


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    """Return the project's metadata."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def constraints(root: Path) -> dict[str, str]:
    """Return the exact versions this release was tested with, by name."""
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def test_every_layer_is_reached_through_a_relative_link(root: Path) -> None:
    for layer in LAYERS:
        link = root / "src" / "mlxk" / layer
        assert link.readlink() == Path("..", "..", layer)


def test_the_build_knows_every_layer(root: Path) -> None:
    assert constant(root / "setup.py", "LAYERS") == LAYERS


def test_every_folder_with_code_is_a_package_so_that_the_build_finds_it(root: Path) -> None:
    folders = {path.parent for layer in LAYERS for path in (root / layer).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_every_data_file_is_shipped(root: Path) -> None:
    shipped = {
        "adapters/builtin": ["models/*/*", "*.json"],
        "entrypoints/http": ["page_files/**/*"],
        "contracts": ["cli/**/*.json", "http/**/*.json"],
    }
    source = (root / "setup.py").read_text(encoding="utf-8")
    assert all(repr(pattern).replace("'", '"') in source for patterns in shipped.values() for pattern in patterns)
    data = [path for layer in LAYERS for path in (root / layer).rglob("*") if path.is_file()]
    data = [path for path in data if not path.is_relative_to(root / "contracts" / "examples")]  # for the tests alone
    forgotten = [
        path.relative_to(root).as_posix()
        for path in data
        if path.suffix not in {".py", ".pyc", ".md"} and not matches(path.relative_to(root).as_posix(), shipped)
    ]
    assert forgotten == []


def test_what_is_installed_has_one_name() -> None:
    installed = importlib.metadata.distributions(name="mlxk")
    # A build leaves its list of sources in the working directory; that is not what is installed.
    files = [file for each in installed if each.read_text("RECORD") for file in each.files or ()]
    assert files
    tops = {path.parts[0] for path in files if path.suffix == ".py"}
    assert {top for top in tops if not top.startswith(("mlxk", "__editable__"))} == set()


@pytest.mark.parametrize("name", STACK)
def test_the_mlx_stack_is_pinned_installed_as_pinned_and_within_the_declared_ranges(
    name: str, constraints: dict[str, str], project: dict[str, Any]
) -> None:
    assert importlib.metadata.version(name) == constraints[name]
    declared = [Requirement(line) for line in project["dependencies"]]
    ranges = [requirement.specifier for requirement in declared if requirement.name == name]
    assert all(specifier.contains(constraints[name]) for specifier in ranges)
    assert ranges or name == "transformers"


def test_every_direct_dependency_is_pinned(constraints: dict[str, str], project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"].values()
    direct = {Requirement(line).name for lines in (project["dependencies"], *extras) for line in lines}
    assert {name for name in direct if canonicalize_name(name) not in constraints} == set()


def test_there_is_no_torch(constraints: dict[str, str], root: Path) -> None:
    assert "torch" not in constraints
    assert "torch" not in (root / "pyproject.toml").read_text(encoding="utf-8")


def constant(path: Path, name: str) -> Any:
    """Return the literal that a module assigns to a name."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            return ast.literal_eval(node.value)
    raise LookupError(name)


def matches(path: str, shipped: dict[str, list[str]]) -> bool:
    """Whether a path is covered by the patterns of its package; ``**`` also means no folder at all."""
    return any(
        fnmatch.fnmatch(path, f"{package}/{pattern}".replace("**/", "*"))
        for package, patterns in shipped.items()
        for pattern in patterns
    )
