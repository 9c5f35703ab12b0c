"""Writes the generated parts of the reference pages; the prose around them is by hand.

A part stands between ``<!-- KIND: WORDS -->`` and ``<!-- end -->``:

- ``fields: NAME [PART]``: the fields of a schema in ``contracts/cli/v0``, or of one of its ``$defs``;
- ``help: COMMAND …``: what ``--help`` prints, 80 columns wide, of one command after the other;
- ``endpoints: PATH …``: requests and answers of addresses, from the OpenAPI document in ``contracts/http/v1``;
- ``objects: PREFIX``: the objects of which those bodies consist, of one API, whose names begin with the prefix;
- ``features: PAGE``: what the commands do, of ``tests/features.json``, and beside ``README.md`` the tests for it;
- ``families: PART``: what the tests show of each architecture of mlx-vlm: ``shown``, ``others`` or ``kinds``;
- ``failures: PREFIX``: the answers that endpoints share, of one API, whose names begin with the prefix.

Run without arguments to rewrite the pages, with ``--check`` to learn by the exit status whether they are in step.
"""

import functools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from what_tests_show import families, features

from mlxk.entrypoints.cli.program import COMMANDS, build_parser
from mlxk.entrypoints.http.resources import openapi_document

ROOT = Path(__file__).parents[1]
NAMES = ("features", "json-api", "commands", "http-api", "vision-families")
PAGES = ("README.md", *(f"docs/{name}.md" for name in NAMES))
SCHEMAS = ROOT / "contracts" / "cli" / "v0"
SUFFIX = ".schema.json"
BLOCK = re.compile(r"(<!-- (?P<kind>[a-z]+): (?P<words>[^>]*?) ?-->\n).*?(<!-- end -->)", re.DOTALL)
COLUMNS = 80
"""Width of the terminal that shows the help; argparse leaves two columns free."""
APIS = ("Messages", "Ollama", "Response")
"""Prefixes of the names of an API's own objects and answers; those of OpenAI's API, and of ours, have none."""

Schema = dict[str, Any]


def main(arguments: list[str]) -> int:
    """Rewrite the pages, or only check them, and return the exit status."""
    stale = False
    for page in (ROOT / name for name in PAGES):
        before = page.read_text(encoding="utf-8")
        after = filled(before)
        stale |= before != after
        if arguments != ["--check"]:
            page.write_text(after, encoding="utf-8")
    return int(stale and arguments == ["--check"])


def filled(text: str) -> str:
    """Return a page with every part between markers written anew."""
    kinds = {"fields": fields, "help": helps, "endpoints": endpoints, "objects": objects, "failures": failures}
    kinds |= {"families": families, "features": features}
    return BLOCK.sub(lambda block: block[1] + kinds[block["kind"]](*block["words"].split()) + block[4], text)


# The command line's JSON


def fields(name: str, part: str | None = None) -> str:
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
    if word.startswith("list of "):
        return f"lists{word[4:]}"
    return word if word.startswith("one of") else "entries" if word == "entry" else f"{word}s"


# The command line's help


def helps(*names: str) -> str:
    """Return a section with the help of each command, as a terminal of 80 columns shows it."""
    commands: Any = next(action for action in build_parser()._actions if action.dest == "command")
    sections = []
    for name in names:
        parser = commands.choices[name]
        parser.formatter_class = functools.partial(parser.formatter_class, width=COLUMNS - 2)
        shown = parser.format_help()
        sections.append(f"### {' or '.join((name, *COMMANDS[name].aliases))}\n\n```text\n{shown}```\n")
    return "\n" + "\n\n".join(section.rstrip() for section in sections) + "\n\n"


# The HTTP API


@functools.cache
def document() -> Schema:
    """Return the OpenAPI document."""
    return openapi_document()


def operations() -> Iterator[tuple[str, str, Schema]]:
    """Yield method, path and description of every endpoint."""
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


HEAD = ["| field | type | required | meaning |", "|---|---|---|---|"]


def endpoints(*paths: str) -> str:
    """Return a section for each method of each path; paths that do the same share one."""
    sections = []
    for method, path, operation in operations():
        if path in paths:
            others = [f"`{other}`" for other in same(method, path, operation)]
            sections.append(endpoint(method, path, operation, others))
    sections.sort(key=lambda section: paths.index(section.split("\n", 1)[0].split()[-1]))
    return "\n" + "\n\n".join(section.rstrip() for section in sections) + "\n\n"


def same(method: str, path: str, operation: Schema) -> list[str]:
    """Return the further paths of an endpoint: what they take, answer and do is the same."""

    def content(described: Schema) -> list[Any]:
        return [described.get(part) for part in ("parameters", "requestBody", "responses")]

    return [
        further
        for other_method, further, other in operations()
        if (other_method, content(other)) == (method, content(operation))
        and further != path
        and other["summary"].startswith(operation["summary"])
    ]


def endpoint(method: str, path: str, operation: Schema, others: list[str]) -> str:
    """Return the section of an endpoint: what it does, what it takes, what it answers."""
    does = [operation["summary"] + ".", operation.get("description", "")]
    if others:
        does.append(f"Also at {', '.join(others)}.")
    lines = [f"### {method} {path}", "", " ".join(filter(None, does)), ""]
    if operation.get("parameters"):
        lines += ["| parameter | where | type | required | meaning |", "|---|---|---|---|---|"]
        lines += [parameter(each) for each in operation["parameters"]]
        lines.append("")
    for media, body in operation.get("requestBody", {}).get("content", {}).items():
        required = "" if operation["requestBody"].get("required") else ", or nothing"
        lines += [f"Body, `{media}`{required}:", "", *table(resolved(body["schema"])), ""]
    return "\n".join(lines + answers(operation)) + "\n"


def parameter(described: Schema) -> str:
    """Return the row of a parameter in a path, a query or a header."""
    required = "yes" if described.get("required") else ""
    typed = http_kind(described["schema"])
    return f"| `{described['name']}` | {described['in']} | {typed} | {required} | {described['description']} |"


def answers(operation: Schema) -> list[str]:
    """Return the table of the answers of an endpoint; those that endpoints share are named by their status."""
    own = {status: each for status, each in operation["responses"].items() if "$ref" not in each}
    shared = {status: each["$ref"] for status, each in operation["responses"].items() if "$ref" in each}
    lines: list[str] = []
    if own:
        lines = ["| status | answer |", "|---|---|"]
        for status, each in own.items():
            forms = [media_type(media, body["schema"]) for media, body in each.get("content", {}).items()]
            lines.append(f"| {status} | {' '.join([each['description'], *forms])} |")
        lines.append("")
    if shared:
        prefix = next((api for api in APIS if api in "".join(shared.values())), "")
        anchor = f"failures-{prefix.lower()}" if prefix else "failures"
        lines += [f"Failures: [{', '.join(sorted(shared))}](#{anchor}).", ""]
    return lines


def media_type(media: str, schema: Schema) -> str:
    """Return what an answer of a media type is."""
    said = schema.get("description", "")
    return f"`{media}`: {said or http_kind(schema)}{'' if said else '.'}"


def failures(prefix: str = "") -> str:
    """Return the table of the answers that the endpoints of an API share, by status; one row for each meaning."""
    shared = document()["components"]["responses"]
    meanings: dict[str, set[str]] = {}
    for _, _, operation in operations():
        for status, each in operation["responses"].items():
            name = each.get("$ref", "").rpartition("/")[2]
            if name and api_of(name) == prefix:
                meanings.setdefault(status, set()).add(shared[name]["description"])
    rows: dict[str, list[str]] = {}
    for status, said in sorted(meanings.items()):
        rows.setdefault(" Or: ".join(sorted(said)), []).append(status)
    lines = [f"| {', '.join(statuses)} | {meaning} |" for meaning, statuses in rows.items()]
    return "\n".join(["| status | meaning |", "|---|---|", *lines]) + "\n"


def objects(prefix: str = "") -> str:
    """Return a section for each object that bodies of an API's requests have, in the order of the alphabet."""
    schemas = document()["components"]["schemas"]
    sections = []
    for name in sorted(used()):
        if api_of(name) == prefix:
            said = schemas[name].get("description")
            lines = [f"### {name}", "", *([said, ""] if said else []), *table(schemas[name])]
            sections.append("\n".join(lines) + "\n")
    return "\n" + "\n\n".join(section.rstrip() for section in sections) + "\n\n"


def api_of(name: str) -> str:
    """Return the prefix of the API to which an object or an answer belongs."""
    return next((prefix for prefix in APIS if name.startswith(prefix) and name != "ResponseFormat"), "")


@functools.cache
def used() -> set[str]:
    """Return the names of the objects to which the bodies of requests refer, and these in turn."""
    bodies = [
        body["schema"]
        for _, _, operation in operations()
        for body in operation.get("requestBody", {}).get("content", {}).values()
    ]
    tops = {names[0] for body in bodies if (names := referred(body))}
    found: set[str] = set()
    waiting = [resolved(body) for body in bodies]
    while waiting:
        for name in referred(waiting.pop()):
            if name not in found | tops:
                found.add(name)
                waiting.append(document()["components"]["schemas"][name])
    return found


def referred(schema: Schema) -> list[str]:
    """Return the names of the objects to which a schema refers."""
    return re.findall(r'"#/components/schemas/(\w+)', json.dumps(schema))


def resolved(rule: Schema) -> Schema:
    """Return a schema, or the one to which it refers."""
    while "$ref" in rule:
        node: Any = document()
        for part in rule["$ref"].removeprefix("#/").split("/"):
            node = node[part]
        rule = node
    return rule


def table(schema: Schema) -> list[str]:
    """Return the table of an object's fields, or of each form that it may have; of a simple value its type."""
    options = [option for option in schema.get("oneOf", schema.get("anyOf", [])) if option != {"type": "null"}]
    if "properties" in schema:
        return [*HEAD, *rows(schema)]
    return [line for option in options for line in form(option)] or [http_kind(schema) + "."]


def form(option: Schema) -> list[str]:
    """Return one of several forms of an object, told apart by their types."""
    if "properties" not in option:
        return [f"Or {http_kind(option)}. {option.get('description', '')}".rstrip(), ""]
    kinds = option["properties"].get("type", {})
    described = {**option, "properties": {name: rule for name, rule in option["properties"].items() if name != "type"}}
    fields_of_form = [*HEAD, *rows(described), ""] if described["properties"] else []
    absent = "" if "type" in option.get("required", []) else ", or without it"
    said = option.get("description", "").removesuffix(".")
    return [
        f"With the `type` {http_kind(kinds)}{absent}{': ' + said if said else ''}{':' if fields_of_form else '.'}",
        "",
        *fields_of_form,
    ]


def rows(schema: Schema, prefix: str = "") -> Iterator[str]:
    """Yield the rows of an object's fields; a field of an object inside it is named by its path."""
    for name, rule in schema["properties"].items():
        target = resolved(rule) if "/properties/" in rule.get("$ref", "") else rule
        required = "yes" if name in schema.get("required", []) else ""
        said = rule.get("description") or target.get("description", "")
        if not said and "const" in rule:
            said = "Says which kind of object this is."
        if "default" in rule:
            said += f" Default: {literal(rule['default'])}."
        yield f"| `{prefix}{name}` | {http_kind(target)} | {required} | {escaped(said.strip())} |"
        for inner, mark in insides(target):
            yield from rows(inner, f"{prefix}{name}{mark}.")


def insides(rule: Schema) -> Iterator[tuple[Schema, str]]:
    """Yield the objects that are described where they stand, with the mark of a list where they are in one."""
    for option in (rule, *rule.get("anyOf", []), *rule.get("oneOf", [])):
        if "properties" in option:
            yield option, ""
        elif "items" in option:
            yield from ((inner, f"[]{mark}") for inner, mark in insides(option["items"]))


def http_kind(rule: Schema) -> str:
    """Return the type of a field of the HTTP API in words; null, which counts as absent, is left out."""
    if "$ref" in rule:
        name = rule["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})" if name in used() else f"`{name}`"
    for several in ("anyOf", "oneOf"):
        if several in rule:
            return " or ".join(dict.fromkeys(filter(None, map(http_kind, rule[several]))))
    if "const" in rule:
        return literal(rule["const"])
    if "enum" in rule:
        return ", ".join(literal(value) for value in rule["enum"] if value is not None) or "null"
    names = rule.get("type", "any value")
    names = [names] if isinstance(names, str) else names
    return " or ".join(bounded(name, rule) for name in names if name != "null")


def bounded(name: str, rule: Schema) -> str:
    """Return the name of a type with its limits."""
    low, high = rule.get("minimum"), rule.get("maximum")
    if name == "array":
        most = f"at most {rule['maxItems']} " if "maxItems" in rule else ""
        entries = re.sub(r"^(string|integer|number|object)", r"\1s", http_kind(rule.get("items", {})))
        return f"list of {most}{entries}"
    if name in {"integer", "number"} and low is not None:
        return f"{name} {low} to {high}" if high is not None else f"{name} ≥ {low}"
    return f"{name} ≤ {high}" if high is not None else name


def literal(value: object) -> str:
    """Return a value as JSON, as code."""
    return f"`{json.dumps(value)}`"


def escaped(text: str) -> str:
    """Return a text that may stand in a table, where a stroke ends a cell and <…> would be markup."""
    return re.sub(r"<(\S+?)>", r"`<\1>`", text).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
