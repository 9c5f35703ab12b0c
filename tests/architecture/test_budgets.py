"""Sizes that keep files and functions readable in one sitting."""

import ast
import functools
import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

Sources = dict[str, ast.Module]

MOST_LINES_A_FILE = 400
MOST_LINES_A_FUNCTION = 60
USUAL_LINES_A_FILE = 385
USUAL_LINES_A_FUNCTION = 35
MOST_MODULES_A_CHAIN = 15
"""Modules that import each other in a row, imports for types included: a chain of 14 imports."""
MOST_MOCKS_A_THOUSAND_LINES = 3

MOCK = re.compile(r"\b(monkeypatch|MagicMock|Mock|mock\.patch|mocker)\b")


def test_no_file_is_longer_than_its_budget(everything: Sources, root: Path) -> None:
    too_long = {path: lines for path, lines in file_lengths(everything, root).items() if lines > MOST_LINES_A_FILE}
    assert too_long == {}


def test_no_function_is_longer_than_its_budget(everything: Sources) -> None:
    too_long = {name: lines for name, lines in function_lengths(everything) if lines > MOST_LINES_A_FUNCTION}
    assert too_long == {}


def test_nine_of_ten_files_and_functions_are_well_below(
    product: Sources, root: Path, record_property: Callable[[str, object], None]
) -> None:
    files = ninetieth_percentile(file_lengths(product, root).values())
    functions = ninetieth_percentile(lines for _, lines in function_lengths(product))
    record_property("lines a file, p90", files)
    record_property("lines a function, p90", functions)
    assert (files <= USUAL_LINES_A_FILE, functions <= USUAL_LINES_A_FUNCTION) == (True, True), (files, functions)


def test_no_chain_of_imports_is_longer_than_its_budget(product: Sources) -> None:
    imports = imports_between(product)

    @functools.cache
    def longest(module: str) -> tuple[str, ...]:
        return (module, *max(map(longest, imports[module]), key=len, default=()))

    assert len(chain := max(map(longest, sorted(imports)), key=len)) <= MOST_MODULES_A_CHAIN, chain


def test_tests_rely_on_doubles_and_not_on_patching(root: Path) -> None:
    lines = [line for path in (root / "tests").rglob("*.py") for line in path.read_text(encoding="utf-8").splitlines()]
    mocks = sum(bool(MOCK.search(line)) for line in lines)
    assert 1000 * mocks / len(lines) <= MOST_MOCKS_A_THOUSAND_LINES


def imports_between(sources: Sources) -> dict[str, set[str]]:
    """Return what each module imports of the others, at the top of the file or for types."""
    modules = {f"mlxk.{path.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}": path for path in sources}
    return {name: (set(imported_names(sources[path])) & modules.keys()) - {name} for name, path in modules.items()}


def imported_names(tree: ast.Module) -> Iterable[str]:
    """Yield what a module imports outside of functions: modules, and names of modules, which may be modules."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending.extend(ast.iter_child_nodes(node))


def file_lengths(sources: Sources, root: Path) -> dict[str, int]:
    """Return the lines of each file."""
    return {path: len((root / path).read_text(encoding="utf-8").splitlines()) for path in sources}


def function_lengths(sources: Sources) -> Iterable[tuple[str, int]]:
    """Yield each function's place and its lines, signature and docstring included."""
    for path, tree in sources.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path}:{node.lineno} {node.name}", (node.end_lineno or node.lineno) - node.lineno + 1


def ninetieth_percentile(lengths: Iterable[int]) -> float:
    """Return the length that nine of ten do not exceed."""
    return statistics.quantiles(lengths, n=10)[-1]
