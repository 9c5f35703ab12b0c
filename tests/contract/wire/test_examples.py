"""The examples: what is accepted is accepted, and each rejected document is an accepted one with one thing broken."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[3] / "contracts" / "examples"
Faults = Callable[[str, Any], list[str]]

OPTIONAL = {
    "error": {"hint", "matches", "detail"},
    "model": {"display_name", "quantization"},
    "show": {"hash_updated", "config", "model_config", "hosts", "cut"},
    "config": {"settings", "models", "faults", "changed"},
    "doctor": {"host", "hosts", "links"},
    "du": {"link_to", "linked_parts"},
    "health": {"files", "missing_bytes", "managed"},
    "embed": {"truncated", "vectors"},
    "serve": {"log", "page"},
    "service": {"content"},
    "sample": {
        *("ram_free_gb", "ram_used_gb", "ram_percent", "swap_used_mb", "swap_percent", "memory_pressure"),
        *("vm_pressure", "load_1", "load_5", "load_15", "cpu_user", "cpu_sys", "cpu_idle", "gpu_device_util"),
        *("gpu_renderer_util", "gpu_tiler_util", "ram_total_bytes", "ram_available_bytes", "swap_total_bytes"),
        *("memory_stall_percent", "gpu_used_bytes", "gpu_total_bytes", "command"),
    },
    "tune": {"loss", "valid_loss", "tokens_per_second", "seconds_left"},
    "training": {"loss", "valid_loss", "tokens_per_second", "seconds_left"},
    "run": {"reasoning", "tool_calls", "regions", "tool_results", "speaker", "words", "notes"},
}
"""Fields that may be absent, by the schema that says so; every other field of an accepted document is required."""

OTHER_MODELS = {"config", "du", "outdated", "ps", "sample", "stop", "top"}
"""Schemas whose ``models`` are not the model object."""

OPEN = {"config", "model_config", "quantization", "detail", "schema", "values", "environment"}
"""Objects whose content is not ours to promise."""


def cases(kind: str) -> list[Any]:
    """Return the example files of a kind, each named by its schema and its case."""
    paths = sorted((EXAMPLES / kind).glob("*/*.json"))
    return [pytest.param(path.parent.name, path, id=f"{path.parent.name}/{path.stem}") for path in paths]


def read(path: Path) -> Any:
    """Return the document of an example."""
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("schema", "path"), cases("accept"))
def test_an_accepted_example_is_accepted(schema: str, path: Path, faults: Faults) -> None:
    assert faults(schema, read(path)) == []


@pytest.mark.parametrize(("schema", "path"), cases("reject"))
def test_a_rejected_example_is_rejected(schema: str, path: Path, faults: Faults) -> None:
    assert faults(schema, read(path)) != []


@pytest.mark.parametrize(("schema", "path"), cases("reject"))
def test_a_rejected_example_differs_in_one_place_from_an_accepted_one(schema: str, path: Path) -> None:
    document = read(path)
    accepted = [read(other) for other in (EXAMPLES / "accept" / schema).glob("*.json")]
    assert min(differences(document, other) for other in accepted) == 1


def test_every_schema_has_examples_of_both_kinds(schemas: dict[str, Any]) -> None:
    for kind in ("accept", "reject"):
        assert {path.name for path in (EXAMPLES / kind).iterdir()} == set(schemas)


@pytest.mark.parametrize(("schema", "path"), cases("accept"))
def test_removing_a_required_field_is_noticed(schema: str, path: Path, faults: Faults) -> None:
    document = read(path)
    unnoticed = [
        where for where in fields(document) if required(schema, where) and not faults(schema, without(document, where))
    ]
    assert unnoticed == []


def differences(one: Any, other: Any) -> int:
    """Count the places where two documents differ: a field added, removed or changed counts once."""
    if isinstance(one, dict) and isinstance(other, dict):
        lone = one.keys() ^ other.keys()
        return len(lone) + sum(differences(one[key], other[key]) for key in one.keys() & other.keys())
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return sum(map(differences, one, other))
    return int(type(one) is not type(other) or one != other)


def fields(document: Any, where: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Walk every field of every object, as paths; open objects are not entered."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield (*where, key)
            if key not in OPEN:
                yield from fields(value, (*where, key))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from fields(value, (*where, index))


def required(schema: str, where: tuple[str | int, ...]) -> bool:
    """Whether the field at a path must be present."""
    names = [part for part in where if isinstance(part, str)]
    described = schema not in OTHER_MODELS and {"model", "models"} & {*names[:-1]}
    owner = "error" if "error" in names[:-1] else "model" if described else schema
    return names[-1] not in OPTIONAL.get(owner, set())


def without(document: Any, where: tuple[str | int, ...]) -> Any:
    """Return a copy of a document that lacks the field at a path."""
    result = copy.deepcopy(document)
    node = result
    for part in where[:-1]:
        node = node[part]
    del node[where[-1]]
    return result
