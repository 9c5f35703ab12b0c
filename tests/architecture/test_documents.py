"""Documents that say what is true: help, tables, links, commands and decisions are held against the program."""

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from mlxk.entrypoints.cli.program import COMMANDS, build_parser
from mlxk.entrypoints.http.resources import openapi_document

if TYPE_CHECKING:
    import subprocess

Program = Callable[..., "subprocess.CompletedProcess[str]"]

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "contracts" / "README.md"])
DECISIONS = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
MEDIA_TYPES = ("application/json", "application/x-ndjson")
"""What looks like a file of ours and is none."""
SECTIONS = ["Context and problem", "Considered options", "Decision", "Consequences", "Confirmation"]


def ids(paths: list[Path]) -> list[str]:
    """Return the names of files, for the report."""
    return [path.relative_to(ROOT).as_posix() for path in paths]


def read(path: Path) -> str:
    """Return the text of a document."""
    return path.read_text(encoding="utf-8")


def tool(name: str) -> ModuleType:
    """Load one of our tools."""
    return importlib.import_module(name)


def test_the_readme_is_short() -> None:
    # Five minutes of reading: with a picture, 1,500 words.
    assert len(read(ROOT / "README.md").split()) <= 1500


def test_the_table_of_features_names_every_command_and_no_other() -> None:
    features = read(ROOT / "README.md").partition("## Features\n")[2].partition("\n## ")[0]
    cells = [row.split("|")[1] for row in features.splitlines() if row.startswith("| `") or row.startswith("| [")]
    named = {words.split()[0] for cell in cells for words in re.findall(r"`([^`]+)`", cell)}
    assert {name for name in named if not name.startswith("-")} == set(COMMANDS)


def test_the_help_that_is_shown_is_the_real_one(mlxk: Program) -> None:
    help_text = mlxk("--help", COLUMNS="80").stdout
    assert f"```console\n$ mlxk --help\n{help_text}```" in read(ROOT / "docs" / "command-line.md")


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="argparse writes flags that take a value in another way")
def test_the_reference_pages_are_in_step_with_contracts_and_help() -> None:
    pages = tool("reference_pages")
    stale = [page for page in pages.PAGES if pages.filled(read(ROOT / page)) != read(ROOT / page)]
    assert stale == [], "run: python tools/reference_pages.py"


def test_the_reference_pages_have_every_command_and_every_address_once() -> None:
    commands = re.findall(r"^<!-- help: (.+) -->$", read(ROOT / "docs" / "commands.md"), re.MULTILINE)
    assert " ".join(commands).split() == list(COMMANDS)
    page = read(ROOT / "docs" / "http-api.md")
    sections = re.findall(r"^### [A-Z]+ (/\S*)$", page, re.MULTILINE)
    others = [path for line in re.findall(r"Also at (.+)\.$", page, re.MULTILINE) for path in line.split(", ")]
    listed = [*sections, *(path.strip("`") for path in others)]
    described = [path for path, methods in openapi_document()["paths"].items() for _ in methods]
    assert sorted(listed) == sorted(described)


def test_every_object_of_every_schema_has_a_field_table() -> None:
    import json

    page = read(ROOT / "docs" / "json-api.md")
    for path in (ROOT / "contracts" / "cli" / "v0").glob("*.schema.json"):
        schema, name = json.loads(read(path)), path.name.removesuffix(".schema.json")
        parts = [name] if schema.get("type") == "object" else []
        parts += [f"{name} {part}" for part, rule in schema.get("$defs", {}).items() if rule.get("type") == "object"]
        assert [part for part in parts if f"<!-- fields: {part} -->" not in page] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids(DOCUMENTS))
def test_links_lead_to_files_that_exist(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", read(document))
    assert [target for target in targets if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids(DOCUMENTS))
def test_commands_and_flags_that_are_shown_exist(document: Path) -> None:
    parser = build_parser()
    sub_parsers: Any = next(action for action in parser._actions if action.dest == "command")
    unknown = []
    for line in shown_commands(read(document)):
        name = line.split()[1] if len(line.split()) > 1 else ""
        flags = set(re.findall(r"(?<![\w-])--[a-z-]+", line))
        known = set(parser._option_string_actions)
        if name in sub_parsers.choices:
            known |= set(sub_parsers.choices[name]._option_string_actions)
        elif re.fullmatch(r"[a-z]+", name):
            unknown.append(line)
        unknown += [f"{line}: {flag}" for flag in flags - known]
    assert unknown == []


def shown_commands(text: str) -> list[str]:
    """Return the command lines of ours in code spans and code blocks, up to a pipe or a semicolon."""
    scripts = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for script in scripts for line in script.splitlines()]
    lines += re.findall(r"^\$ (.+)$", text, re.MULTILINE)
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    found = [line for line in lines if line.startswith("mlxk ") and "…" not in line]
    return [re.split(r" \\?\| |;|>|#| -- ", re.sub(r"\"[^\"]*\"|'[^']*'", "''", line))[0] for line in found]


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids(DOCUMENTS))
def test_files_and_targets_that_are_named_exist(document: Path) -> None:
    spans = re.findall(r"`([^`\n]+)`", read(document))
    made = {"build", "dist"}
    kept = (path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in made)
    folders = tuple(f"{name}/" for name in kept if not name.startswith("."))
    named_paths = [span for span in spans if span.startswith(folders) and not span.startswith(MEDIA_TYPES)]
    paths = [path for path in named_paths if not re.search(r"[ <*…]", path)]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    targets = set(re.findall(r"^([a-z][a-z-]*):", read(ROOT / "Makefile"), re.MULTILINE))
    named = {span.split()[1] for span in spans if re.fullmatch(r"make [a-z-]+", span)}
    assert named - targets == set()


@pytest.mark.parametrize("decision", DECISIONS, ids=ids(DECISIONS))
def test_a_decision_is_short_complete_and_confirmed_by_tests_that_exist(decision: Path) -> None:
    text = read(decision)
    assert len(text.splitlines()) <= 80
    assert [section for section in SECTIONS if f"\n## {section}\n" not in text] == []
    assert "- Bad: " in text
    confirmation = text.partition("\n## Confirmation\n")[2]
    tests = re.findall(r"`(tests/[^`]+\.py)`", confirmation)
    assert tests
    assert [test for test in tests if not (ROOT / test).exists()] == []


def test_every_decision_is_in_the_index() -> None:
    index = read(ROOT / "docs" / "adr" / "README.md")
    listed = re.findall(r"^\| \[(\d{4})\]\(([^)]+)\)", index, re.MULTILINE)
    assert listed == [(path.name[:4], path.name) for path in DECISIONS]
    assert [number for number, _ in listed] == [f"{number:04}" for number in range(1, len(DECISIONS) + 1)]


def test_the_navigation_of_the_site_has_every_page_once() -> None:
    pages = list(pages_of(tool("docs_site").navigation()))
    left_out = {"docs/adr/template.md"}
    assert sorted(pages) == sorted({path.relative_to(ROOT).as_posix() for path in DOCUMENTS} - left_out)


def pages_of(entry: Any) -> Iterator[str]:
    """Return the paths of a navigation, however deep they stand."""
    if isinstance(entry, str):
        yield entry
    else:
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from pages_of(part)


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids(DOCUMENTS))
def test_nobody_is_told_to_install_a_name_that_is_on_no_index(document: Path) -> None:
    # Whoever registers the name first could run code on the machines of those who follow.
    if document.name != "releasing.md":
        by_name = r"(?:(?:pip|pipx|uv tool|brew) install|uvx|pipx run)\b[^`\n]* [\"']?mlxk(?![\w./-])"
        assert re.findall(by_name, read(document)) == []


def test_the_changelog_begins_with_what_is_not_released() -> None:
    headings = re.findall(r"^## (.+)$", read(ROOT / "CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "[Unreleased]"


def test_the_map_of_the_folders_names_every_one() -> None:
    text = read(ROOT / "docs" / "architecture.md")
    kept = {"domain", "application", "adapters", "entrypoints", "contracts", "tests", "docs", "tools", "benchmarks"}
    kept |= {"packaging"}
    missing = [f"{layer}/" for layer in kept if f"{layer}/" not in text]
    for layer in ("adapters", "entrypoints"):
        folders = (path.parent.name for path in (ROOT / layer).glob("*/__init__.py"))
        missing += [f"{layer}/{folder}/" for folder in folders if f"{folder}/" not in text]
    modules = (path.name for path in (ROOT / "adapters").glob("[!_]*.py"))
    missing += [f"adapters/{module}" for module in modules if module not in text]
    assert missing == []
