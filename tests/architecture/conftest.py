"""The source as fixtures: where it is, and its files parsed once."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("domain", "application", "adapters", "entrypoints", "contracts")

Sources = dict[str, ast.Module]


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def product() -> Sources:
    """Return the parsed files of the product, by their path below the root."""
    return parsed(LAYERS)


@pytest.fixture(scope="session")
def everything(product: Sources) -> Sources:
    """Return the parsed files of the product, its tools, benchmarks and tests, by their path below the root."""
    return product | parsed(("tools", "benchmarks", "tests"))


def parsed(folders: tuple[str, ...]) -> Sources:
    """Parse every Python file below some folders."""
    paths = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}
