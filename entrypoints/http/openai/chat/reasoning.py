"""The reasoning fields of a chat request, in the spellings of several servers; they must not contradict each other."""

from typing import Annotated, Any

import attrs

from mlxk.domain.generation.conversation import RESERVED_VARIABLES
from mlxk.domain.generation.settings import DEFAULT_THINKING_TAGS, Effort
from mlxk.entrypoints.http.openai.sampling import SamplingFields
from mlxk.entrypoints.http.requests.validation import FieldError, OneOf, Range

_EFFORTS = tuple(effort.value for effort in Effort)

_REASONS = {"none": False, Effort.LOW.value: True, Effort.HIGH.value: True}
"""Whether an effort requests reasoning; ``medium`` does not, since many clients always send it."""

ThinkingToken = Annotated[str, Range(1, 128)]
TemplateOptions = Annotated[dict[str, Any], Range(0, 64)]


@attrs.frozen(kw_only=True)
class ReasoningParam:
    """How much to reason, as some clients spell it."""

    effort: Annotated[str, OneOf(_EFFORTS)] | None = None
    max_tokens: Annotated[int, Range(0)] | None = None
    enabled: bool | None = None


@attrs.frozen(kw_only=True)
class ThinkingParam:
    """Whether to reason, as other clients spell it."""

    type: Annotated[str, OneOf(("enabled", "disabled", "adaptive"))]
    budget_tokens: Annotated[int, Range(0)] | None = None


@attrs.frozen(kw_only=True)
class ReasoningFields(SamplingFields):
    """Reasoning and sampling fields of a chat request. Null counts as absent."""

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
        for fields in (self._switches, self._efforts, self._budgets):
            (first, value), *others = [*fields.items()] or [("", None)]
            faults += [FieldError(name, f"contradicts {first}") for name, other in others if other != value]
        effort_reasons = _REASONS.get(next(iter(self._efforts.values()), ""))
        switch, switch_reasons = next(iter(self._switches.items()), ("", None))
        if None not in {effort_reasons, switch_reasons} and effort_reasons is not switch_reasons:
            faults.append(FieldError(switch, f"contradicts {next(iter(self._efforts))}"))
        for name, value in (self.chat_template_kwargs or {}).items():
            if name in RESERVED_VARIABLES:
                message = "belongs to the conversation, which the other fields of the request are"
                faults.append(FieldError(f"chat_template_kwargs.{name}", message))
            elif name == "enable_thinking" and value is not None and self.enable_thinking not in {None, value is True}:
                faults.append(FieldError("chat_template_kwargs.enable_thinking", "contradicts enable_thinking"))
        return faults

    def reasons(self, default: bool | None = None, *, can_reason: bool = True) -> bool | None:
        """Return whether the model reasons first; None for the default of the chat template.

        Args:
            default: The operator's default, for requests without any such field.
            can_reason: Whether the model can reason; the default applies only then.
        """
        switch = next(iter(self._switches.values()), None)
        in_template = any(name in self.template_options for name in ("enable_thinking", "thinking"))
        if switch is not None or in_template or self.effort is not None:
            return False if switch is None and self.effort is Effort.NONE else switch
        return default if can_reason else None

    @property
    def effort(self) -> Effort | None:
        """Reasoning effort; None for the default of the chat template."""
        return next(map(Effort, self._efforts.values()), None)

    @property
    def budget(self) -> int | None:
        """Most tokens of reasoning, from the first field that sets it; None for no limit."""
        return next(iter(self._budgets.values()), None)

    @property
    def _switches(self) -> dict[str, bool]:
        """Whether to reason, by the fields that are set."""
        thinks = None if self.thinking is None or self.thinking.type == "adaptive" else self.thinking.type == "enabled"
        reasons = None if self.reasoning is None else self.reasoning.enabled
        fields = {"enable_thinking": self.enable_thinking, "thinking.type": thinks, "reasoning.enabled": reasons}
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def _efforts(self) -> dict[str, str]:
        """Efforts by the fields that are set."""
        fields = {
            "reasoning_effort": self.reasoning_effort,
            "reasoning.effort": None if self.reasoning is None else self.reasoning.effort,
        }
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def _budgets(self) -> dict[str, int]:
        """Most tokens of reasoning, by the fields that are set."""
        fields = {
            "thinking_budget": self.thinking_budget,
            "thinking_budget_tokens": self.thinking_budget_tokens,
            "reasoning_budget_tokens": self.reasoning_budget_tokens,
            "reasoning.max_tokens": None if self.reasoning is None else self.reasoning.max_tokens,
            "thinking.budget_tokens": None if self.thinking is None else self.thinking.budget_tokens,
        }
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def template_options(self) -> dict[str, Any]:
        """Variables for the chat template."""
        return {name: value for name, value in (self.chat_template_kwargs or {}).items() if value is not None}

    def thinking_tags(self, start: str | None, end: str | None) -> tuple[str, str] | None:
        """Return the texts that begin and end the reasoning; None for those of the model.

        Args:
            start: The operator's start text, for requests without one.
            end: The operator's end text, for requests without one.
        """
        start, end = self.thinking_start_token or start, self.thinking_end_token or end
        if start is None and end is None:
            return None
        return start or DEFAULT_THINKING_TAGS[0], end or DEFAULT_THINKING_TAGS[1]
