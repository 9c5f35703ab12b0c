"""The tools a chat request offers, and the choice among them."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

import attrs

from mlxk.domain.generation.conversation import MAX_NAME, MAX_TOOL_BYTES, MAX_TOOLS, misplaced_definitions
from mlxk.domain.generation.grammar import Grammar
from mlxk.entrypoints.http.requests.converter import OneOf, Range, StrictConverter
from mlxk.entrypoints.http.requests.field_errors import FieldError


@attrs.frozen(kw_only=True)
class FunctionDefinition:
    """A function the model may call."""

    name: Annotated[str, Range(1, MAX_NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


@attrs.frozen(kw_only=True)
class ToolParam:
    """A tool on offer."""

    function: FunctionDefinition
    type: Annotated[str, OneOf(("function",))] = "function"

    def to_json(self) -> str:
        """Return the definition in OpenAI's form, as text."""
        function = {key: value for key, value in attrs.asdict(self.function).items() if value is not None}
        return json.dumps({"type": "function", "function": function}, ensure_ascii=False)

    @property
    def arguments_schema(self) -> dict[str, Any]:
        """The JSON Schema of the arguments."""
        return self.function.parameters or {"type": "object", "properties": {}}


Tools = Annotated[list[ToolParam], Range(0, MAX_TOOLS)]


@attrs.frozen(kw_only=True)
class FunctionName:
    """The function to call."""

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
    """A call that the answer has to be, and nothing else."""

    name: str | None
    """The function; None when the answer chooses among several, and then it is an object with its name."""
    grammar: Grammar
    """What the answer must look like: the arguments, or the object that names the function too."""


def forced_call(tools: Sequence[ToolParam], choice: ToolChoice) -> ForcedCall | None:
    """Return the call that a choice asks for; None when the model is free."""
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
    """Return a schema whose references into itself hold where it stands at another place than the root."""
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
    """Return what is wrong with tools and the choice among them together."""
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
    """Teach a converter the kinds of choice."""
    converter.union(ToolChoice, _choice_kind)


def _choice_kind(value: object) -> object:
    if isinstance(value, str):
        return Preference
    if isinstance(value, dict):
        return NamedTool
    raise TypeError("must be none, auto, required or a tool")
