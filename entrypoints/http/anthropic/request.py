"""The bodies of ``POST /v1/messages`` and ``/v1/messages/count_tokens``: their fields and faults."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import attrs

from mlxk.domain.generation.settings import MAX_STOP_SEQUENCES
from mlxk.entrypoints.http.anthropic.blocks import (
    CompactionBlock,
    Content,
    DocumentBlock,
    ImageBlock,
    SearchResultBlock,
    SkippedBlock,
    SystemContent,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    VideoBlock,
    register_blocks,
)
from mlxk.entrypoints.http.openai.chat.parts import AudioPart, FilePart, MediaPart
from mlxk.entrypoints.http.openai.chat.request import MAX_MESSAGES
from mlxk.entrypoints.http.openai.chat.tools import MAX_DEFINITIONS
from mlxk.entrypoints.http.openai.sampling import Share, StopString, Temperature
from mlxk.entrypoints.http.requests.validation import FieldError, OneOf, Range, StrictConverter, Unsupported

_BLOCKS_OF_ROLE: Mapping[str, tuple[type[Any], ...]] = {
    "user": (
        TextBlock,
        ImageBlock,
        AudioPart,
        FilePart,
        VideoBlock,
        DocumentBlock,
        SearchResultBlock,
        ToolResultBlock,
        SkippedBlock,
    ),
    "assistant": (TextBlock, ThinkingBlock, ToolUseBlock, CompactionBlock, SkippedBlock),
    "system": (TextBlock, SkippedBlock),
}

UNSUPPORTED: Mapping[str, Unsupported] = {
    "compaction": Unsupported("conversations are not summarised here; the client can do it"),
    "container": Unsupported("there are no containers"),
    "fallbacks": Unsupported("one model answers; send the request again to another one", ([],)),
    "mcp_servers": Unsupported(
        "nothing is connected to; let the client connect, and offer what it finds as tools", ([],)
    ),
    "speed": Unsupported("there is one speed", ("standard",)),
    "thread": Unsupported("nothing is stored; send the whole conversation"),
}
"""Documented fields that are not supported."""

_THINKING_TYPES = ("enabled", "disabled", "adaptive")
_CACHE = Unsupported("the prompt cache works by itself")
_CITATIONS = Unsupported("answers have no citations")
_BLOCK = "messages[].content[]"

WITHOUT_EFFECT: Mapping[str, Unsupported] = {
    "betas": Unsupported("what is supported needs no beta"),
    "billing_policy": Unsupported("nothing costs anything"),
    "cache_control": _CACHE,
    "context_management": Unsupported("the client decides what it sends"),
    "diagnostics": Unsupported("there are none"),
    "fallback_credit_token": Unsupported("nothing costs anything"),
    "inference_geo": Unsupported("there is one place"),
    "metadata": Unsupported("it is not passed on"),
    "service_tier": Unsupported("there is one tier"),
    "user_profile_id": Unsupported("there are no profiles"),
    "workspace_id": Unsupported("there are no workspaces of that kind"),
    "messages[].output_config": Unsupported("the effort is that of the whole request"),
    f"{_BLOCK}.cache_control": _CACHE,
    f"{_BLOCK}.citations": _CITATIONS,
    f"{_BLOCK}.transformations": Unsupported("the model takes an image in its own size"),
    f"{_BLOCK}.toolset_name": Unsupported("tools are known by their names"),
    f"{_BLOCK}.caller": Unsupported("the model itself calls"),
    f"{_BLOCK}.content[].cache_control": _CACHE,
    f"{_BLOCK}.content[].citations": _CITATIONS,
    f"{_BLOCK}.content[].transformations": Unsupported("the model takes an image in its own size"),
    f"{_BLOCK}.source.content[].cache_control": _CACHE,
    f"{_BLOCK}.source.content[].citations": _CITATIONS,
    "system[].cache_control": _CACHE,
    "system[].citations": _CITATIONS,
    "thinking.type": Unsupported("it is taken for adaptive", _THINKING_TYPES),
    "tools[].allowed_callers": Unsupported("the model itself calls"),
    "tools[].cache_control": _CACHE,
    "tools[].defer_loading": Unsupported("every tool is offered from the start", (False,)),
    "tools[].eager_input_streaming": Unsupported("a call is sent when it is complete", (False,)),
    "tools[].input_examples": Unsupported("chat templates know no examples; put them into the description"),
}
"""Documented fields that are accepted and reported as ignored, by their paths; neutral values are not reported."""


@attrs.frozen(kw_only=True)
class AnthropicMessage:
    """One message."""

    role: Annotated[str, OneOf(tuple(_BLOCKS_OF_ROLE))]
    content: Content = None
    clear_at: Annotated[str, OneOf(("next_user_message", "never"))] | None = None
    """How long a system message stays in the conversation."""

    def faults(self, path: str) -> Iterator[FieldError]:
        """Yield the faults of combinations of fields."""
        if self.content is None and self.role != "system":
            yield FieldError(f"{path}.content", "is required")
        for index, block in enumerate(self.content if isinstance(self.content, list) else ()):
            if not isinstance(block, _BLOCKS_OF_ROLE[self.role]):
                yield FieldError(f"{path}.content[{index}].type", f"is not allowed for the role {self.role}")
            else:
                yield from _media_faults(block, f"{path}.content[{index}]")

    @property
    def is_continuable(self) -> bool:
        """Whether the message can be continued, as the last one of the assistant: it has text only."""
        blocks = self.content if isinstance(self.content, list) else ()
        return all(isinstance(block, (TextBlock, SkippedBlock)) for block in blocks)


def _media_faults(block: object, path: str) -> Iterator[FieldError]:
    """Yield the faults of a media or file block, and of those in a tool result."""
    if isinstance(block, MediaPart | FilePart):
        yield from block.faults(path)
    elif isinstance(block, ToolResultBlock) and isinstance(block.content, list):
        for index, part in enumerate(block.content):
            yield from _media_faults(part, f"{path}.content[{index}]")


@attrs.frozen(kw_only=True)
class ToolDefinition:
    """A tool that the client runs."""

    name: Annotated[str, Range(1, 128)]
    input_schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None
    """No effect: only a call that ``tool_choice`` forces is held to the schema."""
    type: str | None = None
    defer_loading: bool | None = None
    eager_input_streaming: bool | None = None


@attrs.frozen(kw_only=True)
class AnthropicBuiltInTool:
    """A tool defined by Anthropic; left out."""

    type: str
    name: str | None = None


Tool = ToolDefinition | AnthropicBuiltInTool


@attrs.frozen(kw_only=True)
class ToolChoice:
    """Whether tools are called, and which one."""

    type: Annotated[str, OneOf(("auto", "any", "tool", "none"))]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


@attrs.frozen(kw_only=True)
class Thinking:
    """Whether the model reasons first, and whether the reasoning is shown."""

    type: Annotated[str, OneOf((*_THINKING_TYPES, "between_tools"))]
    budget_tokens: Annotated[int, Range(0)] | None = None
    display: Annotated[str, OneOf(("summarized", "omitted"))] | None = None


@attrs.frozen(kw_only=True)
class OutputFormat:
    """JSON by a schema."""

    type: Annotated[str, OneOf(("json_schema",))]
    schema: dict[str, Any]


@attrs.frozen(kw_only=True)
class OutputConfig:
    """The format of the answer, and the reasoning effort."""

    effort: Annotated[str, OneOf(("low", "medium", "high", "xhigh", "max"))] | None = None
    format: OutputFormat | None = None


@attrs.frozen(kw_only=True)
class CountRequest:
    """The body of a token count request, and the base of a message request. Null counts as absent."""

    model: Annotated[str, Range(1, 4096)]
    messages: Annotated[list[AnthropicMessage], Range(1, MAX_MESSAGES)]
    system: SystemContent = None
    tools: Annotated[list[Tool], Range(0, MAX_DEFINITIONS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    """Older name of ``output_config.format``."""

    def faults(self) -> list[FieldError]:
        """Return the faults of combinations of fields."""
        faults: list[FieldError] = []
        for index, message in enumerate(self.messages):
            faults += message.faults(f"messages[{index}]")
        last = self.messages[-1]
        if last.role == "assistant" and not last.is_continuable:
            reason = "is the assistant's and the last one, so it would be continued; only text can be"
            faults.append(FieldError(f"messages[{len(self.messages) - 1}].content", reason))
        if all(message.role == "system" for message in self.messages):
            faults.append(FieldError("messages", "must have a message of the role user"))
        return [*faults, *self._choice_faults()]

    def _choice_faults(self) -> Iterator[FieldError]:
        choice = self.tool_choice
        if choice is None or choice.type not in {"any", "tool"}:
            return
        if choice.type == "any" and not self.own_tools:
            yield FieldError("tool_choice", "needs tools to choose from")
        elif choice.type == "tool" and choice.name is None:
            yield FieldError("tool_choice.name", "is required for the type tool")
        elif choice.type == "tool" and any(tool.name == choice.name for tool in self.built_in_tools):
            reason = "names a tool that Anthropic's servers run or define; there is none here"
            yield FieldError("tool_choice.name", reason, unsupported=True)
        elif choice.type == "tool" and choice.name not in {tool.name for _, tool in self.own_tools}:
            yield FieldError("tool_choice.name", "must be one of the tools")

    @property
    def own_tools(self) -> list[tuple[int, ToolDefinition]]:
        """The tools that the client runs, with their indices in ``tools``."""
        return [(index, tool) for index, tool in enumerate(self.tools or ()) if isinstance(tool, ToolDefinition)]

    @property
    def built_in_tools(self) -> list[AnthropicBuiltInTool]:
        """The tools defined by Anthropic."""
        return [tool for tool in self.tools or () if isinstance(tool, AnthropicBuiltInTool)]

    @property
    def format(self) -> OutputFormat | None:
        """The format of the answer."""
        configured = self.output_config.format if self.output_config is not None else None
        return configured or self.output_format


@attrs.frozen(kw_only=True)
class MessagesRequest(CountRequest):
    """The body of a request for a message."""

    max_tokens: Annotated[int, Range(0)]
    """Most tokens of the answer; 0 only computes the prompt, for the prompt cache."""
    stop_sequences: Annotated[list[StopString], Range(0, MAX_STOP_SEQUENCES)] | None = None
    stream: bool | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Range(-1)] | None = None


def register_request(converter: StrictConverter) -> None:
    """Register the unions of these classes with a converter."""
    register_blocks(converter)
    converter.union(Tool, _tool_kind)


def _tool_kind(value: object) -> object:
    if not isinstance(value, dict):
        raise TypeError("must be an object")
    return ToolDefinition if value.get("type") in (None, "custom") else AnthropicBuiltInTool
