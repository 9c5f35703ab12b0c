"""The tool fields of a chat request: tool definitions and the tool choice."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

import attrs

from mlxk.domain.generation.conversation import MAX_NAME, MAX_TOOL_BYTES, MAX_TOOLS, misplaced_definitions
from mlxk.domain.generation.grammar import ForcedCall, Grammar, call_schema, moved
from mlxk.entrypoints.http.requests.validation import FieldError, OneOf, Range, StrictConverter


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

MAX_DEFINITIONS = 1024
"""Most tools in requests of the APIs whose clients send many."""


@attrs.frozen(kw_only=True)
class FunctionName:
    """The name of the function to call."""

    name: Annotated[str, Range(1, MAX_NAME)]


@attrs.frozen(kw_only=True)
class NamedTool:
    """The tool to call."""

    function: FunctionName
    type: Annotated[str, OneOf(("function",))] = "function"


@attrs.frozen(kw_only=True)
class AllowedToolList:
    """The tools that may be called, and whether one must be called."""

    tools: Annotated[list[NamedTool], Range(1, MAX_TOOLS)]
    mode: Annotated[str, OneOf(("auto", "required"))] = "auto"


@attrs.frozen(kw_only=True)
class AllowedTools:
    """A choice that allows some of the tools."""

    allowed_tools: AllowedToolList
    type: Annotated[str, OneOf(("allowed_tools",))] = "allowed_tools"

    @property
    def names(self) -> frozenset[str]:
        """The names of the functions."""
        return frozenset(tool.function.name for tool in self.allowed_tools.tools)


Preference = Annotated[str, OneOf(("none", "auto", "required", "any"))]
"""``any`` is a synonym of ``required``."""
ToolChoice = Preference | NamedTool | AllowedTools | None


def forced_call(tools: Sequence[ToolParam], choice: ToolChoice) -> ForcedCall | None:
    """Return the call that a choice enforces; None if it enforces none."""
    if not forces(choice):
        return None
    names: frozenset[str] | None = None
    if isinstance(choice, NamedTool):
        names = frozenset({choice.function.name})
    elif isinstance(choice, AllowedTools):
        names = choice.names
    schemas = {
        index: tool.arguments_schema for index, tool in enumerate(tools) if names is None or tool.function.name in names
    }
    if not schemas:
        return None
    grammars = tuple(
        Grammar.json_schema(schema, f"tools[{index}].function.parameters") for index, schema in schemas.items()
    )
    if len(schemas) == 1:
        return ForcedCall(tools[next(iter(schemas))].function.name, grammars[0])
    calls = [call_schema(tools[index].function.name, str(index)) for index in schemas]
    definitions = {str(index): moved(schema, f"#/$defs/{index}") for index, schema in schemas.items()}
    return ForcedCall(None, Grammar.json_schema({"anyOf": calls, "$defs": definitions}, "tools", grammars))


def forces(choice: ToolChoice) -> bool:
    """Whether a choice enforces a call of one of the offered tools."""
    if isinstance(choice, AllowedTools):
        return choice.allowed_tools.mode == "required"
    return isinstance(choice, NamedTool) or choice in {"required", "any"}


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
    if isinstance(choice, AllowedTools) and not choice.names <= {tool.function.name for tool in tools}:
        faults.append(FieldError("tool_choice.allowed_tools.tools", "must name tools of the request"))
    if choice in ("required", "any") and not tools:
        faults.append(FieldError("tool_choice", "needs tools to choose from"))
    return faults


def register_tool_choice(converter: StrictConverter) -> None:
    """Register the union of tool choices with a converter."""
    converter.union(ToolChoice, _choice_kind)


def _choice_kind(value: object) -> object:
    if isinstance(value, str):
        return Preference
    if isinstance(value, dict):
        return AllowedTools if "allowed_tools" in value else NamedTool
    raise TypeError("must be none, auto, required, a tool or allowed_tools")
