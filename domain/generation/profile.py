"""Profiles: the user's defaults for a model under a name, or for every model, used where a request sets no value."""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import attrs

from mlxk.domain.generation.settings import Effort, EngineOptions, GenerationSettings, require_needed
from mlxk.domain.models.kv_cache import TURBOQUANT_BITS


@attrs.frozen
class Profile:
    """A model and its defaults for generation; None for what a profile does not set."""

    model: str = ""
    """The model's reference; empty in a profile for every model."""
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
    """Chat template variable to its JSON value."""
    engine_options: EngineOptions = attrs.field(factory=EngineOptions)
    """Engine options; the draft model is in ``draft_reference`` instead."""
    draft_reference: str | None = None
    """Reference of a smaller model for speculative decoding."""
    draft_kind: str | None = None
    """Expected kind of the draft model, one of ``DRAFT_KINDS``; None takes the kind that its files state."""
    context_limit: int | None = None
    """Most tokens of prompt and completion together."""
    keep_alive_seconds: float | None = None
    """Idle time after which the model is unloaded; infinity means never."""
    alternatives_limit: int | None = None
    """Most alternatives reported with a log probability; requests for more get this many."""

    def over(self, other: "Profile") -> "Profile":
        """Return this profile with the other's values where this one sets none."""
        first, second = self.engine_options, other.engine_options
        # kv_bits and max_kv_size exclude each other: either of this profile replaces both of the other.
        replaces = first.kv_bits is not None or first.max_kv_size is not None
        # A scheme keeps the other's bits where it supports them; otherwise its default applies.
        replaces = replaces or (first.is_turboquant and second.kv_bits not in TURBOQUANT_BITS)
        cache = first if replaces else second
        return Profile(
            model=self.model or other.model,
            system=_first(self.system, other.system),
            settings=_filled(self.settings, other.settings),
            thinking=_first(self.thinking, other.thinking),
            effort=_first(self.effort, other.effort),
            thinking_tags=_first(self.thinking_tags, other.thinking_tags),
            template_options={**other.template_options, **self.template_options},
            engine_options=attrs.evolve(
                cache,
                kv_group_size=_first(first.kv_group_size, cache.kv_group_size),
                kv_scheme=_first(first.kv_scheme, cache.kv_scheme),
                adapter=_first(first.adapter, second.adapter),
                draft_model=first.draft_model,
                draft_required=first.draft_required,
                draft_tokens=_first(first.draft_tokens, second.draft_tokens),
                prefix_cache_bits=_first(first.prefix_cache_bits, second.prefix_cache_bits),
                quantize_activations=_first(first.quantize_activations, second.quantize_activations),
            ),
            draft_reference=_first(self.draft_reference, other.draft_reference),
            draft_kind=_first(self.draft_kind, other.draft_kind),
            context_limit=_first(self.context_limit, other.context_limit),
            keep_alive_seconds=_first(self.keep_alive_seconds, other.keep_alive_seconds),
            alternatives_limit=_first(self.alternatives_limit, other.alternatives_limit),
        )

    @property
    def pins(self) -> bool:
        """Whether the model stays in memory regardless of requests."""
        return self.keep_alive_seconds == math.inf

    @property
    def says_how_to_reason(self) -> bool:
        """Whether it sets whether, or how much, the model reasons."""
        stated = self.template_options.keys() & {"enable_thinking", "thinking"}
        return self.thinking is not None or self.effort is not None or bool(stated)

    def leaving_reasoning_to(self, request: "Profile", *, can_reason: bool) -> "Profile":
        """Return this profile for a request: without reasoning options that the request sets or the model lacks."""
        if not can_reason:
            settings = attrs.evolve(self.settings, thinking_budget=None)
            return attrs.evolve(self, settings=settings, thinking=None, effort=None)
        return attrs.evolve(self, thinking=None) if request.says_how_to_reason else self

    def validate(self) -> None:
        """Check every range.

        Raises:
            ValidationError: Names each field out of range, or the options that exclude each other.
        """
        self.settings.validate()
        self.engine_options.validate()
        require_needed(
            {
                "draft_tokens": self.engine_options.draft_tokens,
                "draft_kind": self.draft_kind,
                "draft_model": self.draft_reference,
            }
        )


Value = TypeVar("Value")


def _first(value: Value | None, other: Value | None) -> Value | None:
    return other if value is None else value


def _filled(settings: GenerationSettings, other: GenerationSettings) -> GenerationSettings:
    filled = settings.filled_from(other)
    return filled if filled.stop else attrs.evolve(filled, stop=other.stop)
