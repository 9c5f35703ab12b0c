"""The fields of a chat request about reasoning and the chat template, in the spellings of several servers."""

from typing import Annotated, Any

import attrs

from mlxk.domain.generation.conversation import RESERVED_VARIABLES
from mlxk.domain.generation.request import DEFAULT_THINKING_TAGS, Effort
from mlxk.entrypoints.http.openai.sampling import SamplingFields
from mlxk.entrypoints.http.requests.validation import FieldError, OneOf, Range

_EFFORTS = tuple(effort.value for effort in Effort)

_REASONS = {"none": False, Effort.LOW.value: True, Effort.HIGH.value: True}
"""Whether an effort requests reasoning; ``medium`` does not, since many clients always send it."""

ThinkingToken = Annotated[str, Range(1, 128)]
TemplateOptions = Annotated[dict[str, Any], Range(0, 64)]


@attrs.frozen(kw_only=True)
class ReasoningParam:
    """How much to reason, as some clients write it."""

    effort: Annotated[str, OneOf(_EFFORTS)] | None = None
    max_tokens: Annotated[int, Range(0)] | None = None
    enabled: bool | None = None


@attrs.frozen(kw_only=True)
class ThinkingParam:
    """Whether to reason, as other clients write it."""

    type: Annotated[str, OneOf(("enabled", "disabled", "adaptive"))]
    budget_tokens: Annotated[int, Range(0)] | None = None


@attrs.frozen(kw_only=True)
class ReasoningFields(SamplingFields):
    """Fields of a chat request. A field with a null value counts as absent."""

    reasoning_effort: Annotated[str, OneOf(_EFFORTS)] | None = None
    enable_thinking: bool | None = None
    thinking_budget: Annotated[int, Range(0)] | None = None
    thinking_budget_tokens: Annotated[int, Range(0)] | None = None
    reasoning_budget_tokens: Annotated[int, Range(0)] | None = None
    thinking_start_token: ThinkingToken | None = None
    thinking_end_token: ThinkingToken | None = None
    reasoning: ReasoningParam | None = None
    thinking: ThinkingParam | None = None
    chat_template_kwargs: TemplateOptions | None = None

    def reasoning_faults(self) -> list[FieldError]:
        """Return the faults of combinations of these fields."""
        faults = []
        reasons = _REASONS.get(self.reasoning_effort or "")
        if None not in {reasons, self.enable_thinking} and reasons is not self.enable_thinking:
            faults.append(FieldError("enable_thinking", "contradicts reasoning_effort"))
        for name, value in (self.chat_template_kwargs or {}).items():
            if name in RESERVED_VARIABLES:
                message = "belongs to the conversation, which the other fields of the request are"
                faults.append(FieldError(f"chat_template_kwargs.{name}", message))
            elif name == "enable_thinking" and value is not None and self.enable_thinking not in {None, value is True}:
                faults.append(FieldError("chat_template_kwargs.enable_thinking", "contradicts enable_thinking"))
        return faults

    def reasons(self, default: bool | None = None, *, can_reason: bool = True) -> bool | None:
        """Return whether the model reasons first; None is the default of the chat template.

        Args:
            default: The operator's, for requests that say nothing about it.
            can_reason: Whether the model can be told to; if not, the default does not tell it.
        """
        stated = self.enable_thinking
        if stated is None and self.thinking is not None and self.thinking.type != "adaptive":
            stated = self.thinking.type == "enabled"
        if stated is None and self.reasoning is not None:
            stated = self.reasoning.enabled
        named = any(name in self.template_options for name in ("enable_thinking", "thinking"))
        if stated is not None or named or self.effort is not None:
            return False if stated is None and self.effort is Effort.NONE else stated
        return default if can_reason else None

    @property
    def effort(self) -> Effort | None:
        """Reasoning effort; None is the default of the chat template."""
        stated = self.reasoning_effort or (self.reasoning.effort if self.reasoning is not None else None)
        return None if stated is None else Effort(stated)

    @property
    def budget(self) -> int | None:
        """Most tokens of reasoning, by whichever field says so; None sets no limit."""
        stated = (
            self.thinking_budget,
            self.thinking_budget_tokens,
            self.reasoning_budget_tokens,
            self.reasoning.max_tokens if self.reasoning is not None else None,
            self.thinking.budget_tokens if self.thinking is not None else None,
        )
        return next((budget for budget in stated if budget is not None), None)

    @property
    def template_options(self) -> dict[str, Any]:
        """Variables for the chat template, by its own names."""
        return {name: value for name, value in (self.chat_template_kwargs or {}).items() if value is not None}

    def thinking_tags(self, start: str | None, end: str | None) -> tuple[str, str] | None:
        """Return the texts that begin and end the reasoning; None as they are known of the model.

        Args:
            start: The operator's, for requests without one.
            end: The operator's, for requests without one.
        """
        start, end = self.thinking_start_token or start, self.thinking_end_token or end
        if start is None and end is None:
            return None
        return start or DEFAULT_THINKING_TAGS[0], end or DEFAULT_THINKING_TAGS[1]
