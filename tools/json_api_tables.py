"""Writes the field tables of ``docs/json-api.md`` from the schemas in ``contracts/``; the prose around them is by hand.

A table stands between ``<!-- fields: NAME -->`` or ``<!-- fields: NAME PART -->`` and ``<!-- end -->``. ``NAME`` is a
schema, ``PART`` one of its ``$defs``. Run without arguments to rewrite the page, with ``--check`` to learn by the exit
status whether it is in step.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "json-api.md"
SCHEMAS = ROOT / "contracts" / "cli" / "v0"
SUFFIX = ".schema.json"
BLOCK = re.compile(r"(<!-- fields: (?P<name>[a-z-]+)(?: (?P<part>[a-z_]+))? -->\n).*?(<!-- end -->)", re.DOTALL)

Schema = dict[str, Any]


def main(arguments: list[str]) -> int:
    """Rewrite the page, or only check it, and return the exit status."""
    before = PAGE.read_text(encoding="utf-8")
    after = filled(before)
    if arguments == ["--check"]:
        return int(before != after)
    PAGE.write_text(after, encoding="utf-8")
    return 0


def filled(text: str) -> str:
    """Return a page with every table between markers written anew."""
    return BLOCK.sub(lambda block: block[1] + table(block["name"], block["part"]) + block[4], text)


def table(name: str, part: str | None) -> str:
    """Return the Markdown table of a schema's fields, or of one of its parts."""
    schema: Schema = json.loads((SCHEMAS / f"{name}{SUFFIX}").read_text(encoding="utf-8"))
    described = schema["$defs"][part] if part else schema
    required = described.get("required", [])
    rows = [
        f"| `{field}` | {kind(rule)} | {'always' if field in required else 'sometimes'} | {rule['description']} |\n"
        for field, rule in described["properties"].items()
    ]
    return "| field | type | present | meaning |\n|---|---|---|---|\n" + "".join(rows)


def kind(rule: Schema) -> str:
    """Return the type of a field in words."""
    if "anyOf" in rule:
        return " or ".join(kind(option) for option in rule["anyOf"])
    if "$ref" in rule:
        return reference(rule["$ref"])
    if "const" in rule:
        return f"`{json.dumps(rule['const'])}`"
    if "enum" in rule:
        return "one of " + ", ".join(f"`{json.dumps(value)}`" for value in rule["enum"])
    if rule["type"] == "array":
        return f"list of {plural(kind(rule['items']))}"
    names = rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
    return " or ".join(names)


def reference(target: str) -> str:
    """Return the name of what a reference points to."""
    name = target.rpartition("/")[2].removesuffix(SUFFIX)
    return {"utc_time": "time"}.get(name, name.replace("_", " "))


def plural(word: str) -> str:
    """Return the plural of a type's name; a closed set stays as it is."""
    return word if word.startswith("one of") else "entries" if word == "entry" else f"{word}s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
