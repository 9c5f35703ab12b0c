"""The body of ``POST /v1/chat/completions``: its fields, their faults, and what it requires of a model."""

import functools
from collections.abc import Mapping
from typing import Annotated, Any

import attrs

from mlxk.application.generation_input import GenerationOptions, IncomingConversation
from mlxk.application.policy import (
    Requirement,
    require_audio_input,
    require_chat,
    require_reasoning,
    require_tools,
    require_vision,
)
from mlxk.domain.errors import CapabilityError
from mlxk.domain.generation.grammar import ForcedCall, Grammar
from mlxk.domain.generation.media import MAX_CHUNK
from mlxk.domain.generation.settings import MAX_LOGPROB_ALTERNATIVES, GenerationSettings
from mlxk.domain.models.model import ServedModel
from mlxk.entrypoints.http.openai.chat.messages import MessageParam
from mlxk.entrypoints.http.openai.chat.parts import VideoPart
from mlxk.entrypoints.http.openai.chat.reasoning import ReasoningFields
from mlxk.entrypoints.http.openai.chat.tools import AllowedTools, ToolChoice, Tools, forced_call, forces, tool_faults
from mlxk.entrypoints.http.openai.sampling import NEUTRAL as SAMPLING_NEUTRAL
from mlxk.entrypoints.http.openai.sampling import NO_OBFUSCATION, Count, Metadata
from mlxk.entrypoints.http.requests.media import PartReader
from mlxk.entrypoints.http.requests.validation import FieldError, Neutral, OneOf, Range, Unsupported, located
from mlxk.entrypoints.settings import ServerSettings

SCHEMA_FIELD = "response_format.json_schema.schema"
"""Path of the schema in a request."""


@attrs.frozen(kw_only=True)
class JsonSchema:
    """A schema and its name."""

    name: Annotated[str, Range(1, 64)]
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


@attrs.frozen(kw_only=True)
class ResponseFormat:
    """Plain text, any JSON object, or JSON by a schema; a grammar enforces the latter two."""

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


CACHE_RETENTION = "the memory and the disk of the server decide how long prompts are kept"

UNSUPPORTED: Mapping[str, Unsupported] = {
    "audio": Unsupported("answers are text only", ({},)),
    "function_call": Unsupported("is deprecated; use tool_choice", ("none", "auto")),
    "functions": Unsupported("is deprecated; use tools", ([],)),
    "modalities": Unsupported("answers are text only", (["text"], [])),
    "moderation": Unsupported("there is no moderation"),
    "web_search_options": Unsupported("there is no web search"),
}
"""Documented fields that are not supported."""

WITHOUT_EFFECT: Mapping[str, Unsupported] = {
    "messages[].content[].image_url.detail": Unsupported("the model takes an image in its own size", ("auto",)),
    "messages[].content[].prompt_cache_breakpoint": Unsupported("the prompt cache works by itself"),
    "messages[].name": Unsupported("chat templates know roles, not names"),
    "prediction": Unsupported("predicted output does not speed up an answer here", ({},)),
    "prompt_cache_options": Unsupported("the prompt cache works by itself", ({},)),
    "prompt_cache_retention": Unsupported(CACHE_RETENTION, ("in_memory", "in-memory")),
    "response_format.json_schema.description": Unsupported("the schema is enforced; put what it is for in a message"),
    "service_tier": Unsupported("there is one tier", ("auto", "default")),
    "store": Unsupported("chat completions are not stored", (False,)),
    "stream_options.include_obfuscation": NO_OBFUSCATION,
    "verbosity": Unsupported("cannot be controlled; ask for it in the prompt", ("medium",)),
}
"""Documented fields that are accepted and reported as ignored, by their paths."""

NEUTRAL: Neutral = {
    **SAMPLING_NEUTRAL,
    "max_completion_tokens": (-1,),
    "metadata": ([],),
    "response_format": ({}, [], ""),
    "top_logprobs": (0,),
}
"""Values that mean "not set"."""

MAX_MESSAGES = 4096
"""Most messages in a conversation."""


@attrs.frozen(kw_only=True)
class ChatRequest(ReasoningFields):
    """The body of a chat request."""

    messages: Annotated[list[MessageParam], Range(1, MAX_MESSAGES)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Range(0, MAX_LOGPROB_ALTERNATIVES)] | None = None
    metadata: Metadata = None
    tools: Tools | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    chunk: Annotated[int, Range(1, MAX_CHUNK)] | None = None
    parse_special: bool | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    def faults(self) -> list[FieldError]:
        """Return the faults of combinations of fields."""
        faults = super().faults()
        for index, message in enumerate(self.messages):
            faults += message.faults(f"messages[{index}]")
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            faults.append(FieldError("max_completion_tokens", "contradicts max_tokens; send one of them"))
        if self.top_logprobs is not None and not self.logprobs:
            faults.append(FieldError("top_logprobs", "needs logprobs to be true"))
        faults += self.reasoning_faults()
        faults += tool_faults(self.tools or (), self.tool_choice)
        if self.response_format is not None:
            faults += self.response_format.faults()
        return faults

    @property
    def offered(self) -> Tools:
        """The tools that the model may call."""
        choice = self.tool_choice
        if isinstance(choice, AllowedTools):
            names = choice.names
            return [tool for tool in self.tools or [] if tool.function.name in names]
        return [] if choice == "none" else self.tools or []

    @property
    def forced_call(self) -> ForcedCall | None:
        """The enforced tool call, if any."""
        return forced_call(self.tools or (), self.tool_choice)

    def require_abilities(self, model: ServedModel, settings: ServerSettings) -> None:
        """Refuse a model that lacks a capability the request needs.

        Args:
            model: The model of the request.
            settings: The operator's settings.

        Raises:
            CapabilityError: It lacks one; the error names the field.
        """
        self._require_media(model)
        # An enforced call needs no tools in the chat template.
        if settings.strict_capabilities and self.offered and not forces(self.tool_choice):
            require_tools(model.details)
        if self.enable_thinking:
            require_reasoning(model.details, "enable_thinking")
        require_chat(model.description)

    def _require_media(self, model: ServedModel) -> None:
        """Require vision for images in the last message (earlier ones become a note), and audio input for any audio."""
        last = len(self.messages) - 1
        index, content = self.messages[last].first_image, self.messages[last].content
        if index is not None and isinstance(content, list):
            require = functools.partial(require_vision, clips=isinstance(content[index], VideoPart))
            _require_in(f"messages[{last}].content[{index}]", require, model)
        for place, message in enumerate(self.messages):
            if message.first_audio is not None:
                _require_in(f"messages[{place}].content[{message.first_audio}]", require_audio_input, model)

    def generation_options(
        self, model: ServedModel, settings: ServerSettings, forced: ForcedCall | None = None
    ) -> GenerationOptions:
        """Return how to generate.

        Args:
            model: The model of the request.
            settings: The operator's defaults.
            forced: The enforced tool call.
        """
        can_reason = model.details.may_reason
        budget = settings.thinking_budget if can_reason else None
        return GenerationOptions(
            settings=self.generation_settings(settings.max_tokens, forced, budget),
            thinking=self.reasons(settings.enable_thinking, can_reason=can_reason),
            effort=self.effort,
            template_options=self.template_options,
            thinking_tags=self.thinking_tags(settings.thinking_start_token, settings.thinking_end_token),
            strict_memory=settings.strict_memory,
            choices=self.n or 1,
            chunk=self.chunk or settings.chunk,
            image_tables=settings.exif_metadata
            and (self.metadata if isinstance(self.metadata, bool) else settings.image_metadata),
            image_facts=self.metadata is not False,
            parse_special=settings.special_tokens_in_content if self.parse_special is None else self.parse_special,
        )

    def incoming(self, media: PartReader) -> IncomingConversation:
        """Return the conversation with its media.

        Args:
            media: Reads them.

        Raises:
            ValidationError: One of them is malformed, too large, or cannot be read.
        """
        return IncomingConversation(
            tuple(message.to_incoming(f"messages[{index}]", media) for index, message in enumerate(self.messages)),
            tuple(tool.to_json() for tool in self.offered),
        )

    def generation_settings(
        self,
        default_max_tokens: int | None,
        forced: ForcedCall | None = None,
        default_budget: int | None = None,
    ) -> GenerationSettings:
        """Return the generation settings.

        Args:
            default_max_tokens: The operator's limit, for requests without one.
            forced: The enforced tool call.
            default_budget: The operator's limit of reasoning tokens, for requests without one.
        """
        max_tokens = self.max_completion_tokens or self.max_tokens or default_max_tokens
        settings = self.settings(max_tokens, (self.top_logprobs or 0) if self.logprobs else None)
        text_grammar = self.response_format.grammar if self.response_format else None
        return attrs.evolve(
            settings,
            grammar=forced.grammar if forced else text_grammar,
            forced_call=forced,
            thinking_budget=default_budget if self.budget is None else self.budget,
        )


def _require_in(path: str, requirement: Requirement, model: ServedModel) -> None:
    """Refuse a model that lacks a capability one field needs; the error names the field."""
    try:
        requirement(model.description)
    except CapabilityError as error:
        raise located(error, path) from None
