"""The items of a request's input: messages, tool calls and their results, reasoning, additional tools."""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import attrs

from mlxk.entrypoints.http.requests.validation import FieldError, OneOf, StrictConverter
from mlxk.entrypoints.http.responses.calls import TEXT_ARGUMENT
from mlxk.entrypoints.http.responses.conversation import (
    AudioContent,
    Content,
    ContentPart,
    ConversationBuilder,
    ImageContent,
    TextContent,
    VideoContent,
    content_faults,
    content_kind,
    located,
    register_content,
    texts_of,
)
from mlxk.entrypoints.http.responses.tools import CustomTool, FunctionTool, NamespaceTool, Tool, Tools


@attrs.frozen(kw_only=True)
class Item:
    """The base of all items; their ids and states have no effect."""

    type: str
    id: str | None = None
    status: str | None = None

    def faults(self, path: str) -> Iterator[FieldError]:
        """Yield the faults of combinations of fields."""
        yield from ()

    def add_to(self, conversation: ConversationBuilder, path: str) -> None:
        """Add the item to a conversation.

        Args:
            conversation: The conversation up to this item.
            path: The field of the item.
        """

    def further_tools(self, path: str) -> list[tuple[str, Tool]]:
        """Return the tools that can be called from here on, each with its field."""
        return []


@attrs.frozen(kw_only=True)
class MessageItem(Item):
    """A message."""

    role: Annotated[str, OneOf(("user", "assistant", "system", "developer"))]
    content: Content
    type: str = "message"
    phase: str | None = None

    def faults(self, path: str) -> Iterator[FieldError]:
        """Yield the faults of the content."""
        yield from content_faults(self.content, f"{path}.content")
        for index, part in enumerate(self.content if isinstance(self.content, list) else ()):
            if self.role == "assistant" and isinstance(part, ImageContent | AudioContent | VideoContent):
                yield FieldError(f"{path}.content[{index}].type", "is not allowed for the role assistant")

    def add_to(self, conversation: ConversationBuilder, path: str) -> None:
        """Add the message."""
        content = located(self.content, f"{path}.content")
        if self.role == "assistant":
            conversation.text(texts_of(content), path)
        else:
            conversation.message(self.role, content, path)


@attrs.frozen(kw_only=True)
class FunctionCallItem(Item):
    """A call of a function; its arguments may be invalid JSON."""

    name: str
    arguments: str
    call_id: str
    namespace: str | None = None
    caller: Any = None

    def add_to(self, conversation: ConversationBuilder, path: str) -> None:
        """Add the call."""
        name = conversation.name_of(self.name, self.namespace)
        conversation.call(name, self.arguments, self.call_id, path)


@attrs.frozen(kw_only=True)
class CustomCallItem(Item):
    """A call of a custom tool."""

    name: str
    input: str
    call_id: str
    namespace: str | None = None
    caller: Any = None

    def add_to(self, conversation: ConversationBuilder, path: str) -> None:
        """Add the call."""
        arguments = json.dumps({TEXT_ARGUMENT: self.input}, ensure_ascii=False)
        conversation.call(conversation.name_of(self.name, self.namespace), arguments, self.call_id, path)


@attrs.frozen(kw_only=True)
class BuiltInCallItem(Item):
    """A call of a tool defined by its type: a shell, a patch, the search for tools."""

    call_id: str | None = None
    action: dict[str, Any] | None = None
    operation: dict[str, Any] | None = None
    arguments: Any = None
    execution: str | None = None
    environment: Any = None
    caller: Any = None

    def add_to(self, conversation: ConversationBuilder, path: str) -> None:
        """Add the call."""
        name = conversation.name_of(self.type.removesuffix("_call"), None)
        value = self.action or self.operation or self.arguments or {}
        arguments = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        conversation.call(name, arguments, self.call_id or self.id or "", path)


ShellResults = list[dict[str, Any]]
Output = str | list[ContentPart] | None


@attrs.frozen(kw_only=True)
class OutputItem(Item):
    """The result of a call."""

    output: Output = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    caller: Any = None

    def faults(self, path: str) -> Iterator[FieldError]:
        """Yield the faults of the output."""
        if self.output is None and self.type != "apply_patch_call_output":
            yield FieldError(f"{path}.output", "is required")
        yield from content_faults(self.output or "", f"{path}.output")
        for index, part in enumerate(self.output if isinstance(self.output, list) else ()):
            if isinstance(part, AudioContent):
                yield FieldError(f"{path}.output[{index}]", "sound is for messages of the user", unsupported=True)

    def add_to(self, conversation: ConversationBuilder, path: str) -> None:
        """Add the result; a patch without output has its status as the result."""
        content = located(self.output if self.output is not None else self.status or "", f"{path}.output")
        conversation.result(self.call_id or self.id or "", content, path)


@attrs.frozen(kw_only=True)
class ShellOutputItem(Item):
    """The results of shell commands."""

    output: ShellResults
    call_id: str
    max_output_length: int | None = None
    caller: Any = None

    def add_to(self, conversation: ConversationBuilder, path: str) -> None:
        """Add the results as JSON text."""
        conversation.result(self.call_id, json.dumps(self.output, ensure_ascii=False), path)


@attrs.frozen(kw_only=True)
class ReasoningItem(Item):
    """Reasoning of the assistant; the summary is used if there is no content."""

    summary: list[TextContent] | None = None
    content: list[TextContent] | None = None
    encrypted_content: str | None = None

    def add_to(self, conversation: ConversationBuilder, path: str) -> None:
        """Add the reasoning."""
        conversation.reasoning("\n".join(part.text for part in self.content or self.summary or ()), path)


@attrs.frozen(kw_only=True)
class AdditionalToolsItem(Item):
    """Additional tools."""

    tools: Tools
    role: str | None = None

    def further_tools(self, path: str) -> list[tuple[str, Tool]]:
        """Return the tools with their fields."""
        return [(f"{path}.tools[{index}]", tool) for index, tool in enumerate(self.tools)]


@attrs.frozen(kw_only=True)
class ToolSearchOutputItem(AdditionalToolsItem):
    """The tools found by a search."""

    call_id: str | None = None
    execution: str | None = None

    def add_to(self, conversation: ConversationBuilder, path: str) -> None:
        """Add the names of the tools as the result of the call; their definitions are in the list of tools."""
        names: list[str] = []
        for tool in self.tools:
            if isinstance(tool, NamespaceTool):
                names += [conversation.name_of(member.name, tool.name) for member in tool.tools]
            elif isinstance(tool, FunctionTool | CustomTool):
                names.append(conversation.name_of(tool.name, None))
        result = f"Found: {', '.join(names)}" if names else "Nothing was found."
        conversation.result(self.call_id or "", result, path)


@attrs.frozen(kw_only=True)
class McpCallItem(Item):
    """A call made by another server, with its result."""

    name: str
    arguments: str
    server_label: str | None = None
    output: str | None = None
    error: Any = None
    approval_request_id: str | None = None

    def add_to(self, conversation: ConversationBuilder, path: str) -> None:
        """Add the call and its result; a call with neither output nor error has its status as the result."""
        conversation.call(conversation.name_of(self.name, self.server_label), self.arguments, self.id or "", path)
        result = self.output
        if result is None:
            failure = (self.status or "") if self.error is None else self.error
            result = failure if isinstance(failure, str) else json.dumps(failure, ensure_ascii=False)
        conversation.result(self.id or "", result, path)


@attrs.frozen(kw_only=True)
class ItemReference:
    """A reference to a stored item."""

    id: str
    type: str | None = None


AnyItem = Item | ItemReference | dict[str, Any]
"""A dictionary is an unsupported item."""

LEFT_OUT = frozenset(
    {
        "code_interpreter_call",
        "file_search_call",
        "image_generation_call",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_list_tools",
        "web_search_call",
    }
)
"""Types of items that record actions of another server; they are left out."""

UNREADABLE = frozenset(
    {
        "compaction",
        "compaction_trigger",
        "computer_call",
        "computer_call_output",
        "configuration_update",
        "program",
        "program_output",
    }
)
"""Types of items that are refused: only their maker can read them, and the conversation needs them."""

ITEM_KINDS: Mapping[str, object] = {
    "message": MessageItem,
    "function_call": FunctionCallItem,
    "custom_tool_call": CustomCallItem,
    **dict.fromkeys(("local_shell_call", "shell_call", "apply_patch_call", "tool_search_call"), BuiltInCallItem),
    **dict.fromkeys(
        (
            "function_call_output",
            "custom_tool_call_output",
            "local_shell_call_output",
            "apply_patch_call_output",
        ),
        OutputItem,
    ),
    "shell_call_output": ShellOutputItem,
    "reasoning": ReasoningItem,
    "additional_tools": AdditionalToolsItem,
    "tool_search_output": ToolSearchOutputItem,
    "mcp_call": McpCallItem,
    "item_reference": ItemReference,
}


def item_faults(item: AnyItem, path: str) -> Iterator[FieldError]:
    """Yield the faults of an item."""
    if isinstance(item, Item):
        yield from item.faults(path)
    elif isinstance(item, dict) and item.get("type") in UNREADABLE:
        yield FieldError(f"{path}.type", "is not supported: its meaning is known to its maker alone", unsupported=True)
    elif isinstance(item, dict) and item.get("type") not in LEFT_OUT:
        yield FieldError(f"{path}.type", f"must be one of {', '.join(ITEM_KINDS)}")


def register_items(converter: StrictConverter) -> None:
    """Register the unions of these classes with a converter."""
    register_content(converter)
    converter.union(Output, content_kind)
    converter.union(AnyItem, _item_kind)


def _item_kind(value: object) -> object:
    if not isinstance(value, dict):
        raise TypeError("must be an object")
    kind = value.get("type")
    if kind is None:
        kind = "message" if "role" in value else "item_reference"
    if not isinstance(kind, str):
        raise TypeError("must have a type that is a string")
    return ITEM_KINDS.get(kind, dict[str, Any])
