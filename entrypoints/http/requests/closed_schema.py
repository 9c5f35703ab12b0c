"""Schemas for enforcing: objects hold the properties they name, unless the schema says otherwise.

By JSON Schema an object may always have more properties, and a small model, free to, goes on inventing them. What is
made with the closed schema is valid by the open one too.
"""

from typing import Any

_COMPOSED = frozenset(
    {"$ref", "$dynamicRef", "additionalProperties", "allOf", "anyOf", "else", "if", "not", "oneOf", "patternProperties"}
    | {"propertyNames", "then", "dependentSchemas", "unevaluatedProperties", "minProperties"}
)
"""Beside one of these, what an object may hold is not in its ``properties`` alone."""

_NO_SCHEMAS = frozenset({"const", "default", "enum", "examples", "required"})
"""Keywords whose values are data, not schemas."""

_MAPS = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
"""Keywords whose values are schemas by name."""


def closed(schema: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return a schema whose objects are closed, wherever that takes away nothing it asks for."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: each if key in _NO_SCHEMAS else _below(key, each) for key, each in schema.items()}
    if isinstance(schema.get("properties"), dict) and not _COMPOSED & schema.keys():
        result["additionalProperties"] = False
    return result


def _below(key: str, value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if key in _MAPS and isinstance(value, dict):
        return {name: closed(each) for name, each in value.items()}
    # The parts of an allOf describe one object together; none of them may forbid what another one names.
    return value if key == "allOf" else closed(value)
