"""How to generate: what a request asks for, filled in from the profile of the model's name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from mlxk.application.incoming_message import IncomingConversation, IncomingMessage
from mlxk.domain.generation.conversation import Conversation, Message, Role
from mlxk.domain.generation.engine_options import EngineOptions
from mlxk.domain.generation.media import DEFAULT_CHUNK
from mlxk.domain.generation.profile import Profile
from mlxk.domain.generation.request import Effort, GenerationSettings, TokenIds, nobody_left
from mlxk.domain.models.model import ModelDetails

Prompt = str | TokenIds | Conversation | IncomingConversation
"""Text or tokens, given to the model unchanged; or a conversation, rendered with its chat template."""


@attrs.frozen
class GenerationOptions:
    """How to generate."""

    settings: GenerationSettings = attrs.field(factory=GenerationSettings)
    thinking: bool | None = None
    """Whether the model reasons first; None leaves it to the chat template."""
    effort: Effort | None = None
    """How much the model reasons; None leaves it to the chat template."""
    template_options: Mapping[str, Any] = attrs.field(factory=dict)
    """Further variables for the chat template, by its own names; JSON values."""
    thinking_tags: tuple[str, str] | None = None
    """The texts that begin and end the reasoning; None as they are known of the model."""
    is_abandoned: Callable[[], bool] = attrs.field(default=nobody_left, eq=False)
    """Whether the client has gone, before they have streams that can be cancelled."""
    engine_options: EngineOptions = attrs.field(factory=EngineOptions)
    draft_reference: str | None = None
    """A smaller model for speculative decoding, as the user typed it."""
    strict_memory: bool = False
    """Whether a text model beyond the memory budget is refused; by default it runs with a warning."""
    strict_capabilities: bool = False
    """Whether tools are refused for a model that is not made for them; by default a text describes them to it."""
    choices: int = 1
    """Completions of each prompt."""
    chunk: int = DEFAULT_CHUNK
    """Number of images in one chunk."""
    image_tables: bool = True
    """Whether the table of its images precedes each completion."""
    image_facts: bool = True
    """Whether the model and the tables get the EXIF facts of images, where the user of this machine allows them."""
    parse_special: bool = False
    """Whether control tokens that messages spell out are control tokens; see ``GenerationRequest``."""
    fills_system: bool = True
    """Whether a conversation without a system prompt gets that of the model's profile."""
    context_limit: int | None = None
    keep_alive_seconds: float | None = None
    """Both as in ``GenerationRequest``."""

    def by_profile(
        self, profile: Profile, details: ModelDetails, prompts: Sequence[Prompt]
    ) -> "tuple[Sequence[Prompt], GenerationOptions]":
        """Return prompts and options with what these leave out from a profile.

        Args:
            profile: What the user has said about the model's name.
            details: The model.
            prompts: A conversation without a system prompt gets that of the profile; text and tokens stay.

        Raises:
            ValidationError: The options and those of the profile exclude each other.
        """
        if profile == Profile():
            return prompts, self
        asked = Profile(**{name: getattr(self, name) for name in _OF_PROFILES})
        filled = asked.over(profile.leaving_reasoning_to(asked, can_reason=details.may_reason))
        filled.validate()
        options = attrs.evolve(self, **{name: getattr(filled, name) for name in _OF_PROFILES})
        system = profile.system if self.fills_system else None
        return [_with_system(each, system) for each in prompts], options


_OF_PROFILES = (
    "settings",
    "thinking",
    "effort",
    "thinking_tags",
    "template_options",
    "engine_options",
    "draft_reference",
    "context_limit",
    "keep_alive_seconds",
)
"""The fields that options share with profiles."""


def _with_system(prompt: Prompt, system: str | None) -> Prompt:
    """Return a conversation that begins with a system prompt, unless it has one; text and tokens as they are."""
    message = Message(Role.SYSTEM, system or "")
    if system is None or not isinstance(prompt, (Conversation, IncomingConversation)):
        return prompt
    if isinstance(prompt, Conversation):
        has_one = any(each.role is Role.SYSTEM for each in prompt.messages)
        return prompt if has_one else attrs.evolve(prompt, messages=(message, *prompt.messages))
    has_one = any(each.message.role is Role.SYSTEM for each in prompt.messages)
    return prompt if has_one else attrs.evolve(prompt, messages=(IncomingMessage(message), *prompt.messages))
