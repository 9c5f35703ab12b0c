"""Output formats of a chat request: its tools, the choice among them, and its response format."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

import attrs

from mlxk.domain.generation.conversation import MAX_NAME, MAX_TOOL_BYTES, MAX_TOOLS, misplaced_definitions
from mlxk.domain.generation.grammar import Grammar
from mlxk.entrypoints.http.requests.converter import OneOf, Range, StrictConverter
from mlxk.entrypoints.http.requests.field_errors import FieldError

SCHEMA_FIELD = "response_format.json_schema.schema"
"""The field of the schema in a request."""


@attrs.frozen(kw_only=True)
class FunctionDefinition:
    """A function that the model may call."""

    name: Annotated[str, Range(1, MAX_NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


@attrs.frozen(kw_only=True)
class ToolParam:
    """A tool that the model may call."""

    function: FunctionDefinition
    type: Annotated[str, OneOf(("function",))] = "function"

    def to_json(self) -> str:
        """Return the definition as JSON text in OpenAI's form."""
        function = {key: value for key, value in attrs.asdict(self.function).items() if value is not None}
        return json.dumps({"type": "function", "function": function}, ensure_ascii=False)

    @property
    def arguments_schema(self) -> dict[str, Any]:
        """The JSON Schema of the arguments."""
        return self.function.parameters or {"type": "object", "properties": {}}


Tools = Annotated[list[ToolParam], Range(0, MAX_TOOLS)]


@attrs.frozen(kw_only=True)
class FunctionName:
    """The name of the function to call."""

    name: Annotated[str, Range(1, MAX_NAME)]


@attrs.frozen(kw_only=True)
class NamedTool:
    """The tool to call."""

    function: FunctionName
    type: Annotated[str, OneOf(("function",))] = "function"


Preference = Annotated[str, OneOf(("none", "auto", "required"))]
ToolChoice = Preference | NamedTool | None


@attrs.frozen
class ForcedCall:
    """A tool call that a grammar enforces."""

    name: str | None
    """The function; None when the model chooses, and its text is then an object with name and arguments."""
    grammar: Grammar
    """The grammar of the arguments, or of the object with name and arguments."""


def forced_call(tools: Sequence[ToolParam], choice: ToolChoice) -> ForcedCall | None:
    """Return the call that a choice enforces; None when it enforces none."""
    if isinstance(choice, NamedTool):
        places = [index for index, tool in enumerate(tools) if tool.function.name == choice.function.name]
    else:
        places = list(range(len(tools))) if choice == "required" else []
    if not places:
        return None
    schemas = {place: tools[place].arguments_schema for place in places}
    parts = tuple(
        Grammar.json_schema(schema, f"tools[{place}].function.parameters") for place, schema in schemas.items()
    )
    if len(places) == 1:
        return ForcedCall(tools[places[0]].function.name, parts[0])
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tools[place].function.name}, "arguments": {"$ref": f"#/$defs/{place}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for place in places
    ]
    definitions = {str(place): _moved(schema, f"#/$defs/{place}") for place, schema in schemas.items()}
    return ForcedCall(None, Grammar.json_schema({"anyOf": calls, "$defs": definitions}, "tools", parts))


def _moved(value: Any, root: str) -> Any:  # noqa: ANN401 - any JSON value
    """Return a schema with its internal references moved from the root to another path."""
    if isinstance(value, list):
        return [_moved(each, root) for each in value]
    if not isinstance(value, dict):
        return value
    changed = {key: _moved(each, root) for key, each in value.items()}
    target = changed.get("$ref")
    if isinstance(target, str) and (target == "#" or target.startswith("#/")):
        changed["$ref"] = root + target[1:]
    return changed


def tool_faults(tools: Sequence[ToolParam], choice: ToolChoice) -> list[FieldError]:
    """Return the faults of tools and the choice among them."""
    faults = [
        FieldError(f"tools[{index}]", f"is larger than {MAX_TOOL_BYTES} bytes")
        for index, tool in enumerate(tools)
        if len(tool.to_json().encode()) > MAX_TOOL_BYTES
    ]
    for index, tool in enumerate(tools):
        for keyword in misplaced_definitions(tool.function.parameters):
            faults.append(FieldError(f"tools[{index}].function.parameters.{keyword}", "must be an object"))
    if isinstance(choice, NamedTool) and choice.function.name not in {tool.function.name for tool in tools}:
        faults.append(FieldError("tool_choice.function.name", "must be one of the tools"))
    if choice == "required" and not tools:
        faults.append(FieldError("tool_choice", "needs tools to choose from"))
    return faults


def register_tool_choice(converter: StrictConverter) -> None:
    """Register the kinds of choice with a converter."""
    converter.union(ToolChoice, _choice_kind)


def _choice_kind(value: object) -> object:
    if isinstance(value, str):
        return Preference
    if isinstance(value, dict):
        return NamedTool
    raise TypeError("must be none, auto, required or a tool")


@attrs.frozen(kw_only=True)
class JsonSchema:
    """A schema and its name."""

    name: Annotated[str, Range(1, 64)]
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


@attrs.frozen(kw_only=True)
class ResponseFormat:
    """Text, any JSON object, or JSON by a schema; the latter two are enforced by a grammar."""

    type: Annotated[str, OneOf(("text", "json_object", "json_schema"))]
    json_schema: JsonSchema | None = None

    def faults(self) -> list[FieldError]:
        """Return the faults of combinations of fields."""
        if self.type == "json_schema" and self.json_schema is None:
            return [FieldError("response_format.json_schema", "is required for the type json_schema")]
        return []

    @property
    def grammar(self) -> Grammar | None:
        """The grammar of the text; None for plain text."""
        if self.type == "json_schema" and self.json_schema is not None and self.json_schema.schema is not None:
            return Grammar.json_schema(self.json_schema.schema, SCHEMA_FIELD)
        return None if self.type == "text" else Grammar.json_object()
