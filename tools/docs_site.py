"""The navigation of the documentation site, made from the index of the pages, so that the two cannot differ.

mkdocs calls ``on_config`` when it builds the site (``make docs``). A heading of ``docs/README.md`` becomes a section,
an item of a list the page that it links to; behind the index of the decisions come the decisions.
"""

import posixpath
import re
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
INDEX = "docs/README.md"
DECISIONS = "docs/adr/README.md"

Section = dict[str, list[dict[str, Any]]]


def on_config(config: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Give mkdocs the navigation."""
    config["nav"] = navigation()
    return config


def navigation() -> list[dict[str, Any] | Section]:
    """Return the sections of the index with their pages, each as its title and its path from the root."""
    sections: list[dict[str, Any] | Section] = [{"All pages": INDEX}]
    for part in re.split(r"^## ", read(INDEX), flags=re.MULTILINE)[1:]:
        heading, _, items = part.partition("\n")
        links = re.findall(r"^- \[([^\]]+)\]\(([^)#]+)\)", items, re.MULTILINE)
        pages = [page(title, INDEX, target) for title, target in links]
        sections.append({heading.strip(): [entry for each in pages for entry in with_decisions(each)]})
    return sections


def page(title: str, index: str, target: str) -> dict[str, str]:
    """Return a page by its title, and its path from the root instead of from the page that links to it."""
    return {title: posixpath.normpath(posixpath.join(posixpath.dirname(index), target))}


def with_decisions(entry: dict[str, str]) -> list[dict[str, Any]]:
    """Return a page, and behind the index of the decisions a section with each of them."""
    if DECISIONS not in entry.values():
        return [entry]
    rows = re.findall(r"^\| \[(\d{4})\]\(([^)]+)\) \| (.+) \|$", read(DECISIONS), re.MULTILINE)
    return [entry, {"Each decision": [page(f"{number} {title}", DECISIONS, path) for number, path, title in rows]}]


def read(path: str) -> str:
    """Return the text of a page."""
    return (ROOT / path).read_text(encoding="utf-8")
