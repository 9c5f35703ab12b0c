"""The tool fields of a request, and their translation: the tools in the model's prompt and the tool choice.

The model knows a tool of a namespace as ``NAMESPACE__NAME``, since other separators break chat templates; its calls
get name and namespace back. Tools that a server would run are left out.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import attrs

from mlxk.domain.generation.conversation import MAX_TOOLS
from mlxk.entrypoints.http.openai.chat.tools import (
    MAX_DEFINITIONS,
    AllowedToolList,
    AllowedTools,
    FunctionDefinition,
    FunctionName,
    NamedTool,
    ToolParam,
)
from mlxk.entrypoints.http.openai.chat.tools import ToolChoice as ChatToolChoice
from mlxk.entrypoints.http.requests.validation import FieldError, OneOf, Range, StrictConverter, raise_for
from mlxk.entrypoints.http.responses.calls import (
    APPLY_PATCH,
    CUSTOM,
    DESCRIPTIONS,
    FUNCTION,
    LOCAL_SHELL,
    PARAMETERS,
    SHELL,
    TOOL_SEARCH,
    CallKind,
)

MAX_TOOL_NAME = 128
"""Most characters of a tool's name."""

ToolName = Annotated[str, Range(1, MAX_TOOL_NAME)]


@attrs.frozen(kw_only=True)
class FunctionTool:
    """A function of the client."""

    name: ToolName
    type: str = "function"
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: bool | None = None
    allowed_callers: Any = None
    output_schema: Any = None


@attrs.frozen(kw_only=True)
class InputFormat:
    """The format of a custom tool's input: any text, or text by a grammar."""

    type: Annotated[str, OneOf(("text", "grammar"))]
    syntax: str | None = None
    definition: str | None = None


@attrs.frozen(kw_only=True)
class CustomTool:
    """A tool of the client that takes plain text."""

    name: ToolName
    type: str = "custom"
    description: str | None = None
    format: InputFormat | None = None
    defer_loading: bool | None = None
    allowed_callers: Any = None

    @property
    def explanation(self) -> str:
        """The description for the model: that of the tool, and the grammar of the input."""
        if self.format is None or not self.format.definition:
            return self.description or ""
        grammar = f"The input must match this {self.format.syntax or ''} grammar:\n{self.format.definition}"
        return "\n\n".join(filter(None, (self.description, grammar)))


NamespacedTool = FunctionTool | CustomTool


@attrs.frozen(kw_only=True)
class NamespaceTool:
    """Tools of the client in a namespace, such as those of an MCP server."""

    name: ToolName
    tools: Annotated[list[NamespacedTool], Range(0, MAX_TOOLS)]
    type: str = "namespace"
    description: str | None = None


@attrs.frozen(kw_only=True)
class SearchTool:
    """The search for further tools."""

    type: str = "tool_search"
    execution: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None


@attrs.frozen(kw_only=True)
class BuiltInTool:
    """A tool defined by its type and run by the client: a shell, or patches."""

    type: str
    environment: Any = None
    allowed_callers: Any = None


Tool = FunctionTool | CustomTool | NamespaceTool | SearchTool | BuiltInTool | ToolParam | dict[str, Any]
"""A dictionary is a tool that a server would run."""

Tools = Annotated[list[Tool], Range(0, MAX_TOOLS)]

_BUILT_IN = {"local_shell": LOCAL_SHELL, "shell": SHELL, "apply_patch": APPLY_PATCH}


@attrs.frozen
class ClientTool:
    """A tool that the client runs."""

    path: str
    """Field of the tool."""
    definition: ToolParam
    """Definition in the chat request, with the model's name of the tool."""
    kind: CallKind
    name: str
    """The client's name of the tool."""
    namespace: str | None = None


def shown_name(name: str, namespace: str | None) -> str:
    """Return the model's name of a tool."""
    if namespace is None:
        return name
    joined = f"{namespace}{name}" if namespace.endswith("__") else f"{namespace}__{name}"
    return re.sub(r"[^A-Za-z0-9_-]", "_", joined)


class Toolbox:
    """The tools of a conversation.

    Args:
        tools: The tools, each with its field. Of several with the same kind, namespace and name, the first is used.
    """

    def __init__(self, tools: Sequence[tuple[str, Tool]]) -> None:
        self.tools: dict[str, ClientTool] = {}
        """Tools that the client runs, by the model's names of them."""
        self.left_out: list[str] = []
        """Fields of tools that a server would run."""
        self._names: dict[tuple[str, str | None], str] = {}
        """The model's names of tools, by name and namespace."""
        known: set[tuple[CallKind, str | None, str]] = set()
        for path, tool in tools:
            for client_tool in self._client_tools(path, tool):
                key = (client_tool.kind, client_tool.namespace, client_tool.name)
                if key not in known:
                    known.add(key)
                    self._add(client_tool)

    def _add(self, tool: ClientTool) -> None:
        name = tool.definition.function.name
        while name in self.tools:
            name += "_"
        function = attrs.evolve(tool.definition.function, name=name)
        self.tools[name] = attrs.evolve(tool, definition=attrs.evolve(tool.definition, function=function))
        self._names.setdefault((tool.name, tool.namespace), name)
        if len(self.tools) > MAX_DEFINITIONS:
            raise_for([FieldError("tools", f"and their namespaces hold more than {MAX_DEFINITIONS} functions")])

    @property
    def definitions(self) -> list[ToolParam]:
        """Definitions of the tools for the chat request, in order."""
        return [tool.definition for tool in self.tools.values()]

    def name_of(self, name: str, namespace: str | None = None) -> str:
        """Return the model's name of a tool; for an unknown tool, the name that it would have."""
        return self._names.get((name, namespace)) or shown_name(name, namespace)

    def called(self, name: str) -> ClientTool:
        """Return the tool that the model calls by a name, also in other spellings; an unknown name is a function."""
        if name in self.tools:
            return self.tools[name]
        spellings = [
            tool
            for tool in self.tools.values()
            if tool.namespace and name in {tool.name, f"{tool.namespace}.{tool.name}", f"{tool.namespace}/{tool.name}"}
        ]
        if len(spellings) == 1:
            return spellings[0]
        return ClientTool("", ToolParam(function=FunctionDefinition(name=name)), FUNCTION, name)

    def _client_tools(self, path: str, tool: Tool) -> Iterator[ClientTool]:
        if isinstance(tool, NamespaceTool):
            for index, member in enumerate(tool.tools):
                about = tool.description if index == 0 else None
                yield _named(f"{path}.tools[{index}]", member, tool.name, about)
        elif isinstance(tool, FunctionTool | CustomTool):
            yield _named(path, tool)
        elif isinstance(tool, ToolParam):
            yield ClientTool(f"{path}.function", tool, FUNCTION, tool.function.name)
        elif isinstance(tool, SearchTool) and tool.execution == "client":
            parameters = tool.parameters or PARAMETERS[TOOL_SEARCH]
            yield _described(path, TOOL_SEARCH, tool.type, tool.description or DESCRIPTIONS[TOOL_SEARCH], parameters)
        elif isinstance(tool, BuiltInTool) and _is_local(tool):
            kind = _BUILT_IN[tool.type]
            yield _described(path, kind, tool.type, DESCRIPTIONS[kind], PARAMETERS[kind])
        else:
            self.left_out.append(path)


def _is_local(tool: BuiltInTool) -> bool:
    """Whether the client runs a tool: a shell may also belong to a container of a server."""
    return not isinstance(tool.environment, dict) or tool.environment.get("type", "local") == "local"


def _described(path: str, kind: CallKind, name: str, description: str, parameters: dict[str, Any]) -> ClientTool:
    function = FunctionDefinition(name=name, description=description or None, parameters=parameters)
    return ClientTool(path, ToolParam(function=function), kind, name)


def _named(path: str, tool: NamespacedTool, namespace: str | None = None, about: str | None = None) -> ClientTool:
    """Return a function or custom tool; ``about`` describes its namespace."""
    own = tool.explanation if isinstance(tool, CustomTool) else tool.description
    function = FunctionDefinition(
        name=shown_name(tool.name, namespace),
        description="\n\n".join(filter(None, (about and f"{namespace}: {about}", own))) or None,
        parameters=PARAMETERS[CUSTOM] if isinstance(tool, CustomTool) else tool.parameters,
        strict=None if isinstance(tool, CustomTool) else tool.strict,
    )
    kind = CUSTOM if isinstance(tool, CustomTool) else FUNCTION
    return ClientTool(path, ToolParam(function=function), kind, tool.name, namespace)


@attrs.frozen(kw_only=True)
class NamedChoice:
    """The tool to call, by its type and, where it has one, its name."""

    type: str
    name: str | None = None
    namespace: str | None = None
    server_label: str | None = None

    def among(self, tools: Mapping[str, ClientTool]) -> list[ClientTool]:
        """Return the chosen tools; several for a namespace."""
        return [tool for key, tool in tools.items() if self._matches(key, tool)]

    def _matches(self, key: str, tool: ClientTool) -> bool:
        if self.type == "namespace":
            return tool.namespace == self.name
        if tool.kind not in (FUNCTION, CUSTOM):
            return tool.definition.function.name == self.type
        same_kind = tool.kind is (CUSTOM if self.type == "custom" else FUNCTION) and self.type in ("function", "custom")
        return same_kind and self.name in {tool.name, key} and self.namespace in {None, tool.namespace}


@attrs.frozen(kw_only=True)
class AllowedChoice:
    """The tools that may be called, and whether one must be called."""

    tools: Annotated[list[NamedChoice], Range(1, MAX_TOOLS)]
    type: str = "allowed_tools"
    mode: Annotated[str, OneOf(("auto", "required"))] = "auto"


Preference = Annotated[str, OneOf(("none", "auto", "required"))]
ToolChoice = Preference | NamedChoice | AllowedChoice | NamedTool | None

CLIENT_RUN = frozenset({"function", "custom", "namespace", "tool_search", *_BUILT_IN})
"""Types of tools that clients run."""

SERVER_RUN = "names a tool that a server would run, and this one runs none"


@attrs.frozen
class TranslatedChoice:
    """A tool choice as that of a chat request."""

    choice: ChatToolChoice
    faults: tuple[FieldError, ...] = ()
    left_out: tuple[str, ...] = ()
    """Fields of tools that a server would run."""


def translate_choice(choice: ToolChoice, toolbox: Toolbox) -> TranslatedChoice:
    """Translate a tool choice into that of a chat request."""
    if isinstance(choice, NamedChoice):
        found = choice.among(toolbox.tools)
        if choice.type not in CLIENT_RUN:
            return TranslatedChoice(None, (FieldError("tool_choice.type", SERVER_RUN, unsupported=True),))
        if not found:
            return TranslatedChoice(None, (FieldError("tool_choice.name", "must be one of the tools"),))
        return TranslatedChoice(_named_tool(found[0]) if len(found) == 1 else _allowed(found, "required"))
    if isinstance(choice, AllowedChoice):
        return _allowed_choice(choice, toolbox)
    return TranslatedChoice(choice)


def _allowed_choice(choice: AllowedChoice, toolbox: Toolbox) -> TranslatedChoice:
    found: list[ClientTool] = []
    faults, left_out = [], []
    for index, named in enumerate(choice.tools):
        path = f"tool_choice.tools[{index}]"
        tools = named.among(toolbox.tools)
        if named.type not in CLIENT_RUN:
            left_out.append(path)
        elif not tools:
            faults.append(FieldError(path, "must be one of the tools"))
        found += tools
    if not found and not faults:
        if choice.mode == "required":
            faults.append(FieldError("tool_choice.tools", SERVER_RUN, unsupported=True))
        return TranslatedChoice("none", tuple(faults), tuple(left_out))
    return TranslatedChoice(_allowed(found, choice.mode) if found else None, tuple(faults), tuple(left_out))


def _named_tool(tool: ClientTool) -> NamedTool:
    return NamedTool(function=FunctionName(name=tool.definition.function.name))


def _allowed(tools: Sequence[ClientTool], mode: str) -> AllowedTools:
    return AllowedTools(allowed_tools=AllowedToolList(tools=[_named_tool(tool) for tool in tools], mode=mode))


def register_tools(converter: StrictConverter) -> None:
    """Register the unions of these classes with a converter."""
    converter.union(NamespacedTool, _namespaced_kind)
    converter.union(Tool, _tool_kind)
    converter.union(ToolChoice, _choice_kind)


_TOOL_KINDS: Mapping[str, object] = {
    "function": FunctionTool,
    "custom": CustomTool,
    "namespace": NamespaceTool,
    "tool_search": SearchTool,
    **dict.fromkeys(_BUILT_IN, BuiltInTool),
}


def _tool_kind(value: object) -> object:
    if not isinstance(value, dict):
        raise TypeError("must be an object")
    if isinstance(value.get("function"), dict):
        return ToolParam
    kind = value.get("type")
    if not isinstance(kind, str):
        raise ValueError("must have a type")
    return _TOOL_KINDS.get(kind, dict[str, Any])


def _namespaced_kind(value: object) -> object:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in ("function", "custom"):
        raise ValueError("must be a tool of the type function or custom")
    return _TOOL_KINDS[kind]


def _choice_kind(value: object) -> object:
    if isinstance(value, str):
        return Preference
    if isinstance(value, dict):
        if "function" in value:
            return NamedTool
        return AllowedChoice if value.get("type") == "allowed_tools" else NamedChoice
    raise TypeError("must be none, auto, required, or an object that names tools")
