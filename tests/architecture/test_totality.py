"""Tables that must be total: every error code has a place everywhere, and every setting is documented."""

import ast
import re
from pathlib import Path

from environment_variables import VARIABLES

from mlxk.domain.errors import MlxkError, all_error_types
from mlxk.entrypoints.cli.output import EXIT_STATUS, exit_status
from mlxk.entrypoints.http.errors import HTTP_STATUS
from mlxk.entrypoints.settings import Settings, read_settings

CODES = [error.code for error in all_error_types()]

UNLISTED = {"HOME", "PATH", "_ARGCOMPLETE", "COMP_LINE"}
"""Variables that the page explains in prose."""


def descendants(error: type[MlxkError]) -> set[type[MlxkError]]:
    """Return the subclasses of an error, and theirs."""
    return {each for child in error.__subclasses__() for each in {child, *descendants(child)}}


def test_every_error_has_a_code_of_its_own() -> None:
    assert len(set(CODES)) == len(CODES)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in CODES)
    assert all("code" in vars(error) for error in all_error_types())


def test_the_list_of_errors_is_complete() -> None:
    ours = {error for error in descendants(MlxkError) if error.__module__.startswith("mlxk.")}
    assert ours == set(all_error_types())


def test_every_error_has_an_exit_status_and_no_other_code_has_one() -> None:
    assert set(EXIT_STATUS) == set(CODES)
    assert all(0 < exit_status(error("message")) < 256 for error in all_error_types())


def test_every_error_has_an_http_status_and_no_other_code_has_one() -> None:
    assert set(HTTP_STATUS) == set(CODES)
    assert all(400 <= status < 600 for status in HTTP_STATUS.values())


def test_every_error_is_explained_with_its_true_statuses(root: Path) -> None:
    page = (root / "docs" / "errors.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## ([a-z_]+)\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
    assert set(sections) == set(CODES)
    for code, text in sections.items():
        assert text.startswith(f"\n**Exit status {EXIT_STATUS[code]} · HTTP {HTTP_STATUS[code]}.** "), code
        assert "*Cause:*" in text, code
        assert "*What to do:*" in text, code


def test_every_variable_is_documented_as_the_program_knows_it(root: Path) -> None:
    page = (root / "docs" / "environment.md").read_text(encoding="utf-8")
    rows = [f"| `{each.name}` | {each.meaning} | {each.values} | {each.default} |" for each in VARIABLES]
    assert [line for line in page.splitlines() if line.startswith("| `")] == rows


def test_every_variable_that_is_read_is_documented_and_every_documented_one_is_read(root: Path) -> None:
    page = (root / "docs" / "environment.md").read_text(encoding="utf-8")
    tree = ast.parse((root / "entrypoints" / "settings.py").read_text(encoding="utf-8"))
    constants = [
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    names = [text for text in constants if re.fullmatch(r"_?[A-Z][A-Z0-9]*(_[A-Z0-9]+)*", text)]
    listed = [variable.name for variable in VARIABLES]
    assert set(names) == {*listed, *UNLISTED}
    assert [name for name in UNLISTED if f"`{name}`" not in page] == []


def test_every_setting_has_a_default() -> None:
    assert isinstance(read_settings({"HOME": "/home/ada"}), Settings)
