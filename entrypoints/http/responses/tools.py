"""The fields of a request about tools: which of them the model is shown, and the choice among them.

A tool in a namespace is shown as ``NAMESPACE__NAME``, since names with other separators break chat templates, and its
calls get name and namespace back. Tools that a server would run are left out.
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
"""Most characters of a name."""

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
    """The form of a custom tool's input: any text, or text by a grammar."""

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
        """What the model is told: the description, and the grammar of the input."""
        form = self.format
        if form is None or not form.definition:
            return self.description or ""
        grammar = f"The input must match this {form.syntax or ''} grammar:\n{form.definition}"
        return "\n\n".join(filter(None, (self.description, grammar)))


NamespacedTool = FunctionTool | CustomTool


@attrs.frozen(kw_only=True)
class NamespaceTool:
    """Tools of the client under one name, such as those of an MCP server."""

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
    """A tool with a meaning known to the client: a shell, or patches."""

    type: str
    environment: Any = None
    allowed_callers: Any = None


Tool = FunctionTool | CustomTool | NamespaceTool | SearchTool | BuiltInTool | ToolParam | dict[str, Any]
"""The last is a tool that a server would run."""

Tools = Annotated[list[Tool], Range(0, MAX_TOOLS)]

_BUILT_IN = {"local_shell": LOCAL_SHELL, "shell": SHELL, "apply_patch": APPLY_PATCH}


@attrs.frozen
class ClientTool:
    """A tool that the client runs."""

    path: str
    """Its field."""
    shown: ToolParam
    """What the model is shown."""
    kind: CallKind
    name: str
    """As the client knows it."""
    namespace: str | None = None


def shown_name(name: str, namespace: str | None) -> str:
    """Return the name by which the model knows a tool."""
    if namespace is None:
        return name
    joined = f"{namespace}{name}" if namespace.endswith("__") else f"{namespace}__{name}"
    return re.sub(r"[^A-Za-z0-9_-]", "_", joined)


class Toolbox:
    """The tools of a conversation.

    Args:
        tools: Each with its field; the first of those with the same name counts.
    """

    def __init__(self, tools: Sequence[tuple[str, Tool]]) -> None:
        self.tools: dict[str, ClientTool] = {}
        """Those that the client runs, by the names by which the model knows them."""
        self.left_out: list[str] = []
        """The fields of those that a server would run."""
        self._names: dict[tuple[str, str | None], str] = {}
        """The names by which the model knows them, by name and namespace."""
        known: set[tuple[CallKind, str | None, str]] = set()
        for path, tool in tools:
            for each in self._client_tools(path, tool):
                if (each.kind, each.namespace, each.name) in known:
                    continue
                known.add((each.kind, each.namespace, each.name))
                name = each.shown.function.name
                while name in self.tools:
                    name += "_"
                function = attrs.evolve(each.shown.function, name=name)
                self.tools[name] = attrs.evolve(each, shown=attrs.evolve(each.shown, function=function))
                self._names.setdefault((each.name, each.namespace), name)
                if len(self.tools) > MAX_DEFINITIONS:
                    raise_for([FieldError("tools", f"and their namespaces hold more than {MAX_DEFINITIONS} functions")])

    @property
    def shown(self) -> list[ToolParam]:
        """What the model is shown, in order."""
        return [tool.shown for tool in self.tools.values()]

    def name_of(self, name: str, namespace: str | None = None) -> str:
        """Return the name by which the model knows a tool; for an unknown one, that which it would have."""
        return self._names.get((name, namespace)) or shown_name(name, namespace)

    def called(self, name: str) -> ClientTool:
        """Return the tool that the model means by a name; a function of that name when there is none."""
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
            for index, each in enumerate(tool.tools):
                about = tool.description if index == 0 else None
                yield _named(f"{path}.tools[{index}]", each, tool.name, about)
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
    """Whether the client runs a tool; a shell may be one of a container that a server runs."""
    return not isinstance(tool.environment, dict) or tool.environment.get("type", "local") == "local"


def _described(path: str, kind: CallKind, name: str, description: str, parameters: dict[str, Any]) -> ClientTool:
    function = FunctionDefinition(name=name, description=description or None, parameters=parameters)
    return ClientTool(path, ToolParam(function=function), kind, name)


def _named(path: str, tool: NamespacedTool, namespace: str | None = None, about: str | None = None) -> ClientTool:
    """Return a tool with a name of its own; the first of a namespace says what the namespace is."""
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
        """Return the tools that are meant; several for a namespace."""
        return [tool for key, tool in tools.items() if self._means(key, tool)]

    def _means(self, key: str, tool: ClientTool) -> bool:
        if self.type == "namespace":
            return tool.namespace == self.name
        if tool.kind not in (FUNCTION, CUSTOM):
            return tool.shown.function.name == self.type
        same_kind = tool.kind is (CUSTOM if self.type == "custom" else FUNCTION) and self.type in ("function", "custom")
        return same_kind and self.name in {tool.name, key} and self.namespace in {None, tool.namespace}


@attrs.frozen(kw_only=True)
class AllowedChoice:
    """The tools that may be called, and whether one must be."""

    tools: Annotated[list[NamedChoice], Range(1, MAX_TOOLS)]
    type: str = "allowed_tools"
    mode: Annotated[str, OneOf(("auto", "required"))] = "auto"


Preference = Annotated[str, OneOf(("none", "auto", "required"))]
ToolChoice = Preference | NamedChoice | AllowedChoice | NamedTool | None

CLIENT_RUN = frozenset({"function", "custom", "namespace", "tool_search", *_BUILT_IN})
"""Types of tools that clients run."""

SERVER_RUN = "names a tool that a server would run, and this one runs none"


@attrs.frozen
class Chosen:
    """A choice among the tools of a conversation."""

    choice: ChatToolChoice
    faults: tuple[FieldError, ...] = ()
    left_out: tuple[str, ...] = ()
    """The fields of tools that a server would run."""


def chosen(choice: ToolChoice, toolbox: Toolbox) -> Chosen:
    """Return a choice as that of a chat request."""
    if isinstance(choice, NamedChoice):
        found = choice.among(toolbox.tools)
        if choice.type not in CLIENT_RUN:
            return Chosen(None, (FieldError("tool_choice.type", SERVER_RUN, unsupported=True),))
        if not found:
            return Chosen(None, (FieldError("tool_choice.name", "must be one of the tools"),))
        return Chosen(_named_tool(found[0]) if len(found) == 1 else _allowed(found, "required"))
    if isinstance(choice, AllowedChoice):
        return _chosen_of_several(choice, toolbox)
    return Chosen(choice)


def _chosen_of_several(choice: AllowedChoice, toolbox: Toolbox) -> Chosen:
    found: list[ClientTool] = []
    faults, left_out = [], []
    for index, each in enumerate(choice.tools):
        path = f"tool_choice.tools[{index}]"
        means = each.among(toolbox.tools)
        if each.type not in CLIENT_RUN:
            left_out.append(path)
        elif not means:
            faults.append(FieldError(path, "must be one of the tools"))
        found += means
    if not found and not faults:
        if choice.mode == "required":
            faults.append(FieldError("tool_choice.tools", SERVER_RUN, unsupported=True))
        return Chosen("none", tuple(faults), tuple(left_out))
    return Chosen(_allowed(found, choice.mode) if found else None, tuple(faults), tuple(left_out))


def _named_tool(tool: ClientTool) -> NamedTool:
    return NamedTool(function=FunctionName(name=tool.shown.function.name))


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
