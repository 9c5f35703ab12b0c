"""Sizes that keep files and functions readable in one sitting."""

import ast
import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

Sources = dict[str, ast.Module]

MOST_LINES_A_FILE = 400
MOST_LINES_A_FUNCTION = 60
USUAL_LINES_A_FILE = 385
USUAL_LINES_A_FUNCTION = 35
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


def test_tests_rely_on_doubles_and_not_on_patching(root: Path) -> None:
    lines = [line for path in (root / "tests").rglob("*.py") for line in path.read_text(encoding="utf-8").splitlines()]
    mocks = sum(bool(MOCK.search(line)) for line in lines)
    assert 1000 * mocks / len(lines) <= MOST_MOCKS_A_THOUSAND_LINES


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
