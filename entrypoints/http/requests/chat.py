"""The body of ``POST /v1/chat/completions``."""

from typing import Annotated

import attrs

from mlxk.application.incoming_message import IncomingMessage
from mlxk.application.policy import require_reasoning, require_tools
from mlxk.application.use_cases.serve_catalogue import ServedModel
from mlxk.domain.errors import CapabilityError
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.media import MAX_CHUNK
from mlxk.domain.generation.request import MAX_LOGPROB_ALTERNATIVES, Effort, GenerationSettings
from mlxk.domain.models.model import Capability
from mlxk.entrypoints.http.requests.converter import OneOf, Range
from mlxk.entrypoints.http.requests.field_errors import FieldError
from mlxk.entrypoints.http.requests.messages import MessageParam, ReadAudio, to_conversation
from mlxk.entrypoints.http.requests.response_format import ResponseFormat
from mlxk.entrypoints.http.requests.sampling import Count, Metadata, SamplingFields
from mlxk.entrypoints.http.requests.tools import ForcedCall, ToolChoice, Tools, forced_call, tool_faults

_EFFORTS = ("none", *(effort.value for effort in Effort))

_REASONS = {"none": False, Effort.LOW.value: True, Effort.HIGH.value: True}
"""Whether the model is to reason, by the efforts that say so; many clients send medium without being asked."""

MAX_MESSAGES = 4096
"""Messages a conversation may have."""


@attrs.frozen(kw_only=True)
class ChatRequest(SamplingFields):
    """What a chat request asks. Documented fields that are missing here stand in ``support``."""

    messages: Annotated[list[MessageParam], Range(1, MAX_MESSAGES)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Range(0, MAX_LOGPROB_ALTERNATIVES)] | None = None
    metadata: Metadata | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Annotated[str, OneOf(_EFFORTS)] | None = None
    enable_thinking: bool | None = None
    thinking_budget: Annotated[int, Range(0)] | None = None
    chunk: Annotated[int, Range(1, MAX_CHUNK)] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    def faults(self) -> list[FieldError]:
        """Return what is wrong with combinations of fields."""
        faults = super().faults()
        for index, message in enumerate(self.messages):
            faults += message.faults(f"messages[{index}]")
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            faults.append(FieldError("max_completion_tokens", "contradicts max_tokens; send one of them"))
        if self.top_logprobs is not None and not self.logprobs:
            faults.append(FieldError("top_logprobs", "needs logprobs to be true"))
        reasons = _REASONS.get(self.reasoning_effort or "")
        if None not in {reasons, self.enable_thinking} and reasons is not self.enable_thinking:
            faults.append(FieldError("enable_thinking", "contradicts reasoning_effort"))
        faults += tool_faults(self.tools or (), self.tool_choice)
        if self.response_format is not None:
            faults += self.response_format.faults()
            if self.response_format.type != "text" and self.offered:
                faults.append(FieldError("response_format", "cannot be combined with tools", unsupported=True))
        return faults

    @property
    def thinking(self) -> bool | None:
        """Whether the model is to reason first; None leaves it to the chat template."""
        return False if self.reasoning_effort == "none" else self.enable_thinking

    @property
    def effort(self) -> Effort | None:
        """How much the model is to reason; None leaves it to the chat template."""
        return None if self.reasoning_effort in {None, "none"} else Effort(self.reasoning_effort)

    @property
    def offered(self) -> Tools:
        """The tools the model may call."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def forced_call(self) -> ForcedCall | None:
        """The call the answer has to be; None when the model is free."""
        return forced_call(self.offered, self.tool_choice)

    @property
    def has_images(self) -> bool:
        """Whether there are images in the conversation."""
        return any(message.has_images for message in self.messages)

    def require_vision_input(self, model: ServedModel) -> None:
        """Refuse a model that cannot look at what the last message shows; of earlier images it is merely told.

        Raises:
            CapabilityError: It cannot.
        """
        place = self.messages[-1].first_image
        if place is None or model.description.can(Capability.VISION):
            return
        path = f"messages[{len(self.messages) - 1}].content[{place}]"
        raise CapabilityError.in_field(path, f"'{model.id}' is a text model and cannot look at images")

    @property
    def has_audio(self) -> bool:
        """Whether there is sound in the conversation."""
        return any(message.first_sound is not None for message in self.messages)

    def require_audio_input(self, model: ServedModel) -> None:
        """Refuse a model that cannot hear the sound in a conversation.

        Raises:
            CapabilityError: It cannot.
        """
        if model.description.can(Capability.AUDIO):
            return
        for index, message in enumerate(self.messages):
            if message.first_sound is not None:
                path = f"messages[{index}].content[{message.first_sound}]"
                raise CapabilityError.in_field(path, "this model takes no sound")

    def require_tools(self, model: ServedModel) -> None:
        """Refuse tools to choose from where the model's chat template leaves them out; a forced call needs no template.

        Raises:
            CapabilityError: It does.
        """
        if self.offered and self.tool_choice in {None, "auto"}:
            require_tools(model.details)

    def require_reasoning(self, model: ServedModel) -> None:
        """Refuse to have a model reason that does not; not to have it reason is no more than it does.

        Raises:
            CapabilityError: It does not.
        """
        if self.thinking:
            require_reasoning(model.details, "enable_thinking")

    def sent(self, read_sound: ReadAudio) -> list[IncomingMessage]:
        """Return the messages with their images and sounds.

        Args:
            read_sound: Decodes a sound.

        Raises:
            ValidationError: An image or a sound is none, too large, or not in the message itself.
        """
        return [message.to_sent(f"messages[{index}]", read_sound) for index, message in enumerate(self.messages)]

    def conversation(self) -> Conversation:
        """Return the conversation to answer, without its images and sounds."""
        return to_conversation(self.messages, tuple(tool.to_json() for tool in self.offered))

    def generation_settings(
        self, default_max_tokens: int | None, forced: ForcedCall | None = None
    ) -> GenerationSettings:
        """Return the settings of an answer.

        Args:
            default_max_tokens: The operator's limit, for requests that name none.
            forced: The call it has to be.
        """
        asked = self.max_completion_tokens or self.max_tokens
        settings = self.settings(asked or default_max_tokens, (self.top_logprobs or 0) if self.logprobs else None)
        form = self.response_format.grammar if self.response_format else None
        return attrs.evolve(settings, grammar=forced.grammar if forced else form, thinking_budget=self.thinking_budget)
