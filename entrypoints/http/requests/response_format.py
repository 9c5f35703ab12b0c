"""The form a chat request wants its answer in."""

from typing import Annotated, Any

import attrs

from mlxk.domain.generation.grammar import Grammar
from mlxk.entrypoints.http.requests.converter import OneOf, Range
from mlxk.entrypoints.http.requests.field_errors import FieldError

SCHEMA_FIELD = "response_format.json_schema.schema"
"""Where a request has the schema of its answer."""


@attrs.frozen(kw_only=True)
class JsonSchema:
    """A schema and what it is called."""

    name: Annotated[str, Range(1, 64)]
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


@attrs.frozen(kw_only=True)
class ResponseFormat:
    """Text, any JSON object, or JSON by a schema; the latter two are enforced, not only asked for."""

    type: Annotated[str, OneOf(("text", "json_object", "json_schema"))]
    json_schema: JsonSchema | None = None

    def faults(self) -> list[FieldError]:
        """Return what is wrong with combinations of fields."""
        if self.type == "json_schema" and self.json_schema is None:
            return [FieldError("response_format.json_schema", "is required for the type json_schema")]
        return []

    @property
    def grammar(self) -> Grammar | None:
        """What the answer must look like; None for text."""
        if self.type == "json_schema" and self.json_schema is not None and self.json_schema.schema is not None:
            return Grammar.json_schema(self.json_schema.schema, SCHEMA_FIELD)
        return None if self.type == "text" else Grammar.json_object()
