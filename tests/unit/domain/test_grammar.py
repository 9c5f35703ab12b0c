"""What a JSON Schema means when it is enforced."""

import json
from typing import Any

import pytest

from mlxk.domain.generation.grammar import Grammar

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CLOSED = {**SCHEMA, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (SCHEMA, CLOSED),
        ({**SCHEMA, "additionalProperties": True}, {**SCHEMA, "additionalProperties": True}),
        ({**SCHEMA, "patternProperties": {}}, {**SCHEMA, "patternProperties": {}}),
        ({**SCHEMA, "required": ["country"]}, {**SCHEMA, "required": ["country"]}),
        ({"allOf": [SCHEMA, SCHEMA]}, {"allOf": [SCHEMA, SCHEMA]}),
        ({"required": ["id"], "oneOf": [SCHEMA]}, {"required": ["id"], "oneOf": [SCHEMA]}),
        (
            {"$defs": {"a": SCHEMA, "b": SCHEMA}, "allOf": [{"$ref": "#/$defs/a"}, {"properties": {"id": {}}}]},
            {"$defs": {"a": SCHEMA, "b": CLOSED}, "allOf": [{"$ref": "#/$defs/a"}, {"properties": {"id": {}}}]},
        ),
        (
            {"$defs": {"a": SCHEMA}, "$ref": "#/$defs/a", "properties": {"id": {}}},
            {"$defs": {"a": SCHEMA}, "$ref": "#/$defs/a", "properties": {"id": {}}},
        ),
        ({"anyOf": [SCHEMA, True]}, {"anyOf": [CLOSED, True]}),
        ({"items": SCHEMA, "enum": [SCHEMA]}, {"items": CLOSED, "enum": [SCHEMA]}),
        ({"$defs": {"properties": SCHEMA}}, {"$defs": {"properties": CLOSED}}),
        (
            {"properties": {"properties": SCHEMA}},
            {"properties": {"properties": CLOSED}, "additionalProperties": False},
        ),
    ],
)
def test_objects_hold_what_their_schema_names(schema: Any, expected: Any) -> None:
    assert json.loads(Grammar.json_schema(schema).text) == expected
    assert Grammar.json_schema(json.dumps(schema)) == Grammar.json_schema(schema)


TOOL = json.dumps({"type": "function", "function": {"name": "f"}})


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar.json_object(),
        Grammar.choice(("a", "b")),
        Grammar.json_schema("{"),
        Grammar.json_schema("[" * 100_000),
    ],
)
def test_calls_are_allowed_beside_a_valid_schema_only(grammar: Grammar) -> None:
    assert grammar.or_calls((TOOL,)) is grammar
    schema = Grammar.json_schema(SCHEMA)
    assert schema.or_calls(("{}",)) is schema
    assert schema.or_calls((TOOL,)).parts == (schema,)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '"' + "x" * 300_000 + '"', "true", "3"])
def test_text_that_names_no_properties_stays_as_it_is(text: str) -> None:
    assert Grammar.json_schema(text).text == text


def test_references_of_a_moved_schema_follow_it_and_its_data_stays_as_it_is() -> None:
    data = {"$ref": "#/$defs/city"}
    properties = {"const": data, "kind": {"const": data}, "one": {"enum": [data], "default": data, "examples": [data]}}
    schema = {"$defs": {"enum": data, "city": {"type": "string"}}, "properties": properties, "items": [data]}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    definitions = json.loads(Grammar.json_schema({}).or_calls([json.dumps(tool)]).text)["$defs"]
    followed = {"$ref": "#/$defs/0/$defs/city"}
    assert definitions["0"] == {
        "$defs": {"enum": followed, "city": {"type": "string"}},
        "properties": {**properties, "const": followed},
        "items": [followed],
        "additionalProperties": False,
    }
