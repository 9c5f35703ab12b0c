"""The body of ``POST /v1/responses``: its fields, their faults, and its translation into a chat request."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import attrs

from mlxk.domain.generation.settings import MAX_LOGPROB_ALTERNATIVES, Effort
from mlxk.entrypoints.http.openai.chat.reasoning import ReasoningFields, ReasoningParam
from mlxk.entrypoints.http.openai.chat.request import CACHE_RETENTION, ChatRequest, JsonSchema, ResponseFormat
from mlxk.entrypoints.http.openai.sampling import NEUTRAL as SAMPLING_NEUTRAL
from mlxk.entrypoints.http.openai.sampling import NO_OBFUSCATION, Count, MetadataEntries
from mlxk.entrypoints.http.requests.body import FieldNames
from mlxk.entrypoints.http.requests.validation import (
    FieldError,
    Neutral,
    OneOf,
    Range,
    StrictConverter,
    Unsupported,
    raise_for,
)
from mlxk.entrypoints.http.responses.conversation import ConversationBuilder
from mlxk.entrypoints.http.responses.items import AnyItem, Item, item_faults
from mlxk.entrypoints.http.responses.tools import Toolbox, ToolChoice, Tools, translate_choice

MAX_ITEMS = 8192
"""Most items in one request."""

LOGPROBS = "message.output_text.logprobs"
"""The entry of ``include`` that requests log probabilities."""

IMAGE_URLS = "message.input_image.image_url"
"""The entry of ``include`` for the URLs of images, which stored items always have."""

_EFFORTS = tuple(effort.value for effort in Effort)
MAX_EFFORT = "max"
"""Another name of the highest effort."""


@attrs.frozen(kw_only=True)
class ReasoningConfig(ReasoningParam):
    """How much to reason."""

    effort: Annotated[str, OneOf((*_EFFORTS, MAX_EFFORT))] | None = None
    summary: str | None = None
    generate_summary: str | None = None
    context: str | None = None
    mode: str | None = None

    def to_chat(self) -> ReasoningParam:
        """Return the field of the chat request."""
        effort = Effort.XHIGH.value if self.effort == MAX_EFFORT else self.effort
        return ReasoningParam(effort=effort, max_tokens=self.max_tokens, enabled=self.enabled)


@attrs.frozen(kw_only=True)
class TextFormat:
    """Plain text, any JSON object, or JSON by a schema, which is inline or, as in chat requests, in ``json_schema``."""

    type: Annotated[str, OneOf(("text", "json_object", "json_schema"))]
    name: Annotated[str, Range(1, 64)] | None = None
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None
    json_schema: JsonSchema | None = None

    def faults(self) -> Iterator[FieldError]:
        """Yield the faults of combinations of fields."""
        if self.type == "json_schema" and self.schema is None and self.json_schema is None:
            yield FieldError("text.format.schema", "is required for the type json_schema")

    def to_chat(self) -> ResponseFormat:
        """Return the field of the chat request."""
        schema = self.json_schema
        if schema is None and self.type == "json_schema":
            schema = JsonSchema(name=self.name or "answer", schema=self.schema, strict=self.strict)
        return ResponseFormat(type=self.type, json_schema=schema)


@attrs.frozen(kw_only=True)
class TextConfig:
    """The format of the text."""

    format: TextFormat | None = None
    verbosity: Annotated[str, OneOf(("low", "medium", "high"))] | None = None


Input = str | Annotated[list[AnyItem], Range(0, MAX_ITEMS)] | None
Include = Annotated[list[str], Range(0, 64)]


UNSUPPORTED: Mapping[str, Unsupported] = {
    "access_programs": Unsupported("there are none"),
    "background": Unsupported("answers are made while the client waits; stream them", (False,)),
    "background_options": Unsupported("answers are made while the client waits; stream them"),
    "context_management": Unsupported("the conversation is not changed; shorten the input", ([],)),
    "conversation": Unsupported("conversations are not stored; use previous_response_id"),
    "image": Unsupported("images are not compressed"),
    "moderation": Unsupported("there is no moderation"),
    "n": Unsupported("a response is one answer", (1,)),
    "prompt": Unsupported("there are no stored prompts; send the text in input or instructions"),
}
"""Documented fields that are not supported."""

_CACHE_REASON = "the prompt cache works by itself"
_CALLER_REASON = "the model calls tools itself"

WITHOUT_EFFECT: Mapping[str, Unsupported] = {
    "client_metadata": Unsupported("it is no part of the prompt"),
    "input[].caller": Unsupported(_CALLER_REASON),
    "input[].content[].detail": Unsupported("the model takes an image in its own size", ("auto",)),
    "input[].content[].prompt_cache_breakpoint": Unsupported(_CACHE_REASON),
    "input[].encrypted_content": Unsupported("it is known to its maker alone"),
    "input[].max_output_length": Unsupported("the client has cut the output"),
    "input[].output[].detail": Unsupported("the model takes an image in its own size", ("auto",)),
    "input[].output[].prompt_cache_breakpoint": Unsupported(_CACHE_REASON),
    "input[].phase": Unsupported("chat templates know no phases"),
    "prompt_cache_options": Unsupported(_CACHE_REASON, ({},)),
    "prompt_cache_retention": Unsupported(CACHE_RETENTION, ("in_memory", "in-memory")),
    "reasoning.context": Unsupported("the chat template decides which reasoning it shows", ("auto",)),
    "reasoning.generate_summary": Unsupported("the reasoning itself is returned"),
    "reasoning.mode": Unsupported("there is one mode", ("standard",)),
    "reasoning.summary": Unsupported("the reasoning itself is returned"),
    "service_tier": Unsupported("there is one tier", ("auto", "default")),
    "stream_options.include_obfuscation": NO_OBFUSCATION,
    "text.format.description": Unsupported("the schema is enforced; put what it is for in a message"),
    "text.verbosity": Unsupported("cannot be controlled; ask for it in the prompt", ("medium",)),
    "tools[].allowed_callers": Unsupported(_CALLER_REASON, (["direct"],)),
    "tools[].defer_loading": Unsupported("the model is shown the tool at once", (False,)),
    "tools[].output_schema": Unsupported("chat templates show no schemas of results"),
    "tools[].tools[].allowed_callers": Unsupported(_CALLER_REASON, (["direct"],)),
    "tools[].tools[].defer_loading": Unsupported("the model is shown the tool at once", (False,)),
    "tools[].tools[].output_schema": Unsupported("chat templates show no schemas of results"),
}
"""Documented fields that are accepted and reported as ignored, by their paths."""

NEUTRAL: Neutral = {
    **SAMPLING_NEUTRAL,
    "max_output_tokens": (-1,),
    "metadata": ([],),
    "reasoning": ({},),
    "text": ({},),
}
"""Values that mean "not set"."""


@attrs.frozen(kw_only=True)
class ResponseRequest(ReasoningFields):
    """The body of a request. Null counts as absent."""

    input: Input = None
    messages: Input = None
    """Another name of ``input``."""
    instructions: str | None = None
    previous_response_id: Annotated[str, Range(1, 128)] | None = None
    store: bool | None = None
    max_output_tokens: Count | None = None
    max_tool_calls: Annotated[int, Range(1)] | None = None
    """No effect: it limits calls of tools that the server runs, and there are none."""
    metadata: MetadataEntries | None = None
    include: Include | None = None
    top_logprobs: Annotated[int, Range(0, MAX_LOGPROB_ALTERNATIVES)] | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    truncation: Annotated[str, OneOf(("auto", "disabled"))] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Any = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    client_metadata: Any = None

    def faults(self) -> list[FieldError]:
        """Return the faults of combinations of fields."""
        faults = super().faults()
        if self.input is not None and self.messages is not None:
            faults.append(FieldError("messages", "is another name of input; send one of them"))
        if self.input is None and self.messages is None and not (self.instructions or self.previous_response_id):
            faults.append(FieldError("input", "is required"))
        for path, item in self.items:
            faults += item_faults(item, path)
        if len({self.max_tokens, self.max_output_tokens} - {None}) > 1:
            faults.append(FieldError("max_output_tokens", "contradicts max_tokens; send one of them"))
        if self.text is not None and self.text.format is not None:
            faults += self.text.format.faults()
        return faults + self.reasoning_faults()

    @property
    def items_field(self) -> str:
        """The field that holds the input."""
        return "input" if self.messages is None else "messages"

    @property
    def items(self) -> list[tuple[str, AnyItem]]:
        """The items, each with its field; empty for a plain text."""
        value, field = getattr(self, self.items_field), self.items_field
        return [(f"{field}[{index}]", item) for index, item in enumerate(value if isinstance(value, list) else ())]

    @property
    def plain_input(self) -> str | None:
        """The input if it is a plain text."""
        value = getattr(self, self.items_field)
        return value if isinstance(value, str) else None

    @property
    def logprobs(self) -> bool:
        """Whether log probabilities are requested."""
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)

    @property
    def ignored_includes(self) -> list[str]:
        """The fields of entries of ``include`` without effect."""
        supported = (LOGPROBS, IMAGE_URLS)
        return [f"include[{index}]" for index, entry in enumerate(self.include or ()) if entry not in supported]


@attrs.frozen
class Translation:
    """A request as a chat request."""

    chat: ChatRequest
    names: FieldNames
    """The fields of the request by those of the chat request."""
    toolbox: Toolbox
    ignored: tuple[str, ...]
    """Paths of ignored fields, in addition to those that the reader reports."""


def translate(request: ResponseRequest, items: Sequence[tuple[str, Item]], left_out: Sequence[str]) -> Translation:
    """Translate a request into a chat request.

    Args:
        request: The request.
        items: All items of the conversation, each with its field.
        left_out: The fields of unsupported items.

    Raises:
        ValidationError, ParameterNotSupportedError: The tool choice is invalid, or there is no message.
    """
    tools = [(f"tools[{index}]", tool) for index, tool in enumerate(request.tools or ())]
    toolbox = Toolbox([*tools, *(tool for path, item in items for tool in item.further_tools(path))])
    choice = translate_choice(request.tool_choice, toolbox)
    raise_for(choice.faults)
    conversation = ConversationBuilder(toolbox.name_of)
    if request.instructions:
        conversation.message("system", request.instructions, "instructions")
    for path, item in items:
        item.add_to(conversation, path)
    if request.plain_input is not None:
        conversation.message("user", request.plain_input, request.items_field)
    conversation.end()
    if not conversation.messages:
        raise_for([FieldError(request.items_field, "has no message")])
    shared = {field.name: getattr(request, field.name) for field in attrs.fields(ReasoningFields)}
    translated = {
        "max_tokens": request.max_output_tokens or request.max_tokens,
        "n": None,
        "reasoning": request.reasoning.to_chat() if request.reasoning else None,
        "stream_options": None,
    }
    chat = ChatRequest(
        **{**shared, **translated},
        messages=conversation.messages,
        logprobs=request.logprobs or None,
        top_logprobs=request.top_logprobs if request.logprobs else None,
        tools=toolbox.definitions or None,
        tool_choice=choice.choice,
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=request.text.format.to_chat() if request.text and request.text.format else None,
    )
    names = FieldNames({**_names(request.items_field), **_tool_names(toolbox), **conversation.names})
    ignored = (*left_out, *toolbox.left_out, *choice.left_out, *request.ignored_includes)
    return Translation(chat, names, toolbox, ignored)


def _names(items_field: str) -> dict[str, str]:
    return {
        "messages": items_field,
        "max_tokens": "max_output_tokens",
        "response_format": "text.format",
        "response_format.json_schema": "text.format",
        "tool_choice.function.name": "tool_choice.name",
        "tool_choice.allowed_tools.tools": "tool_choice.tools",
    }


def _tool_names(toolbox: Toolbox) -> dict[str, str]:
    names = {}
    for index, tool in enumerate(toolbox.tools.values()):
        names[f"tools[{index}]"] = names[f"tools[{index}].function"] = tool.path
    return names


def register_request(converter: StrictConverter) -> None:
    """Register the unions of these classes with a converter."""
    converter.union(Input, _input_kind)


def _input_kind(value: object) -> object:
    if isinstance(value, str):
        return str
    if isinstance(value, list):
        return Annotated[list[AnyItem], Range(0, MAX_ITEMS)]
    raise TypeError("must be a string or an array of items")
