"""The schemas themselves: valid, complete, and of one mind with the program's vocabulary."""

import enum
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mlxk.domain.errors import all_error_types
from mlxk.domain.hub import Purpose
from mlxk.domain.models.footprint import MemoryFit
from mlxk.domain.models.model import Capability, Framework, HealthStatus, ModelType, Origin
from mlxk.entrypoints.cli.program import COMMANDS

Schemas = dict[str, dict[str, Any]]

PARTS = {"envelope", "error", "model", "sample", "training"}
"""Schemas of parts that commands share, and of the lines of files."""


def test_every_schema_is_valid_json_schema_2020_12(schemas: Schemas) -> None:
    for schema in schemas.values():
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        Draft202012Validator.check_schema(schema)


def test_every_command_has_a_schema_and_every_schema_a_command(schemas: Schemas) -> None:
    assert set(schemas) - PARTS == {*COMMANDS, "version"}


def test_the_envelope_knows_every_command(schemas: Schemas) -> None:
    assert set(schemas["envelope"]["properties"]["command"]["enum"]) == {*COMMANDS, "version", None}


def test_every_error_code_is_in_the_schema_and_no_other(schemas: Schemas) -> None:
    listed = schemas["error"]["properties"]["type"]["enum"]
    assert sorted(listed) == sorted(error.code for error in all_error_types())


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("model.properties.framework", Framework),
        ("model.properties.model_type", ModelType),
        ("model.properties.capabilities.items", Capability),
        ("model.properties.health", HealthStatus),
        ("model.properties.source", Origin),
        ("show.$defs.memory.properties.fit", MemoryFit),
        ("search.$defs.found.properties.fit", MemoryFit),
        ("recommend.$defs.recommended.properties.fit", MemoryFit),
        ("recommend.$defs.recommended.properties.for", Purpose),
    ],
)
def test_closed_sets_are_the_same_in_schema_and_domain(schemas: Schemas, path: str, values: type[enum.Enum]) -> None:
    node: Any = schemas
    for part in path.split("."):
        node = node[part]
    assert node["enum"] == [member.value for member in values]


def test_every_property_is_described(schemas: Schemas) -> None:
    undescribed = [
        f"{name}: {field}"
        for name, schema in schemas.items()
        for part in [schema, *schema.get("$defs", {}).values()]
        for field, rule in part.get("properties", {}).items()
        if part.get("type") == "object" and "description" not in rule
    ]
    assert undescribed == []
