"""Tables of reference pages that are made of what the tests hold: features, and families of vision models."""

import json
import re
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
MODELS = TESTS / "models"


def features(page: str) -> str:
    """Return the table of what the commands do, which has the tests that show it, but in ``README.md``."""
    lines = []
    for row in json.loads((TESTS / "features.json").read_text(encoding="utf-8")):
        shown = ", ".join(map(named, row["tests"]))
        cells = f"| {row['commands']} | {row['does']} |"
        lines.append(cells if page == "README.md" else f"{cells.replace('](docs/', '](')} {shown} |")
    heads = ["| command | what it does |", "|---|---|"]
    if page != "README.md":
        heads = [f"{heads[0]} shown by |", f"{heads[1]}---|"]
    return "\n".join([*heads, *lines, ""])


def named(path: str) -> str:
    """Return the name of a file of tests.

    Raises:
        OSError: There is no such file.
        ValueError: It has no tests.
    """
    if not re.search(r"^def test_", (TESTS / path).read_text(encoding="utf-8"), re.MULTILINE):
        raise ValueError(f"{path} has no test")
    return f"`{path}`"


def families(part: str) -> str:
    """Return what the tests of vision models show, in one of three parts."""
    others = json.loads((MODELS / "other_architectures.json").read_text(encoding="utf-8"))
    if part == "others":
        rows = [f"| `{name}` | {reason} |" for name, reason in sorted(others["vision"].items())]
        return "\n".join(["| architecture | why |", "|---|---|", *rows, ""])
    if part == "kinds":
        written = json.loads((MODELS / "text_families.json").read_text(encoding="utf-8"))
        kinds = {**others["kinds"], "text; mlxk runs it with mlx-vlm, and answers as that does": list(written)}
        rows = [f"| {kind} | {', '.join(f'`{name}`' for name in names)} |" for kind, names in kinds.items()]
        return "\n".join(["| what they make | architectures |", "|---|---|", *rows, ""])
    files = ("vision_families.json", "omni_families.json")
    written = {k: v for each in files for k, v in json.loads((MODELS / each).read_text(encoding="utf-8")).items()}
    notes: list[str] = []
    rows = [f"| `{name}` | {_shown(found['shows'], notes)} |" for name, found in sorted(written.items())]
    heads = [
        "| architecture | one image | two images | shared batches | sound | image and sound | video |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*heads, *rows, "", *(f"{number}. {note}." for number, note in enumerate(notes, 1)), ""])


def _shown(shows: dict[str, Any], notes: list[str]) -> str:
    """Return the cells of a family, and add what they refer to."""
    words = {None: "\N{EN DASH}", True: "yes", "shared": "yes", "alone": "alone"}
    columns = [shows.get(name) for name in ("image", "images", "batch", "sound", "both", "video")]
    notes += [each for each in dict.fromkeys((*columns, shows.get("note"))) if each not in (*words, *notes)]
    cells = [words[each] if each in words else f"({notes.index(each) + 1})" for each in columns]
    note = f" ({notes.index(shows['note']) + 1})" if "note" in shows else ""
    return " | ".join([cells[0] + note, *cells[1:]])
