"""Profiles: what the user has said once about a name of their own, or about every model.

A profile never decides what a request decides: it fills in what a request leaves out.
"""

from collections.abc import Mapping
from typing import Any

import attrs

from mlxk.domain.generation.engine_options import EngineOptions
from mlxk.domain.generation.request import Effort, GenerationSettings


@attrs.frozen
class Profile:
    """A model under a name, and how it generates where a request does not say."""

    model: str = ""
    """The reference of the model; empty where a profile is for every model."""
    system: str | None = None
    """The system prompt of conversations without one."""
    settings: GenerationSettings = attrs.field(factory=GenerationSettings)
    thinking: bool | None = None
    """Whether the model reasons first."""
    effort: Effort | None = None
    """How much the model reasons."""
    thinking_tags: tuple[str, str] | None = None
    """The texts that begin and end the reasoning."""
    template_options: Mapping[str, Any] = attrs.field(factory=dict)
    """Variables for the chat template, by its own names; JSON values."""
    engine_options: EngineOptions = attrs.field(factory=EngineOptions)
    """Without a draft model, which is a reference here."""
    draft_reference: str | None = None
    """A smaller model for speculative decoding."""
    context_limit: int | None = None
    """Most tokens of prompt and completion together."""
    keep_alive_seconds: float | None = None
    """Idle time after which the model is unloaded; infinity means never."""
    chunk: int | None = None
    """Images of one prompt; more are processed in chunks."""

    def validate(self) -> None:
        """Check every range.

        Raises:
            ValidationError: Names each field out of range, or the options that exclude each other.
        """
        self.settings.validate()
        self.engine_options.validate()
