"""Fits conversations to chat templates that refuse them or leave a part of them out.

Whether a template takes a conversation is found by rendering an outline of it: the same roles, calls and kinds of
content, with a marker in place of every text. The template takes it when it raises nothing and writes every marker.
Otherwise the steps of ``repair_steps`` are tried, and those without which it would not succeed are kept. So no template
is named here, and no step is taken that the template does not need.
"""

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from mlxk.adapters.mlx.prompting.repair_steps import FORMS, LAST_RESORTS, REPAIRS, TAG, TAGGED_CALLS, Step
from mlxk.adapters.mlx.prompting.template_inputs import REASONING_KEYS, WirePrompt
from mlxk.adapters.mlx.prompting.template_sandbox import FaultKind, TemplateFault
from mlxk.domain.generation.conversation import Adaptation


@attrs.frozen
class Plan:
    """The steps for conversations of one outline."""

    steps: tuple[Step, ...] = ()
    lost: tuple[int, ...] = ()
    """Indices of the messages that are left out, wholly or in part, whatever is done."""

    def apply(self, prompt: WirePrompt) -> WirePrompt:
        """Return the conversation after the steps."""
        for step in self.steps:
            prompt = step.change(prompt)
        return prompt

    @property
    def adaptations(self) -> tuple[Adaptation, ...]:
        """What there is to say about it."""
        said = [step.adaptation for step in self.steps if step.adaptation is not None]
        if self.lost:
            names = ", ".join(f"messages[{index}]" for index in self.lost)
            said.append(
                Adaptation("text-left-out", f"The model's chat template leaves out the text, or a part, of {names}.")
            )
        return tuple(dict.fromkeys(said))


def make_plan(
    prompt: WirePrompt, render: Callable[[WirePrompt], str], last_resorts: Sequence[Step] = LAST_RESORTS
) -> Plan:
    """Return the steps with which a template takes conversations like this one; none if no steps help.

    Args:
        prompt: The conversation.
        render: Renders a conversation of the same kind.
        last_resorts: The steps to try where no others help.

    Raises:
        TemplateFault: The template is no valid one, or exceeds its limits.
    """
    outline, markers = outlined(prompt)
    trial = _Trial(outline, markers, render)
    forms = [*itertools.combinations(FORMS, 1), *itertools.combinations(FORMS, 2)]
    best: tuple[Step, ...] = ()
    for form in forms:
        if trial.missing(best) != 0 and not trial.is_as_good(best, form):
            best = form
    for some in (REPAIRS, (*REPAIRS, *last_resorts)):
        best = trial.improved(best, some)
        # Several may be needed before the template takes anything.
        for form in ((), *forms):
            if trial.missing(best) is None or (form == () and trial.missing(best) != 0):
                best = trial.improved(best, some, form)
    for step in reversed(best):
        fewer = tuple(each for each in best if each is not step)
        if trial.is_as_good(fewer, best):
            best = fewer
    return Plan(best, trial.lost(best)) if trial.missing(best) is not None else Plan()


_MARKER = re.compile(r"Kq\d+vz")


class _Trial:
    """Renders an outline with different steps, each combination once."""

    def __init__(
        self, outline: WirePrompt, markers: Sequence[tuple[str, int, bool]], render: Callable[[WirePrompt], str]
    ) -> None:
        self._outline = outline
        self._markers = markers
        self._render = render
        self._written: dict[tuple[Step, ...], frozenset[str] | None] = {}
        """The markers in the text with some steps; None where the template refuses."""

    def missing(self, steps: tuple[Step, ...]) -> int | None:
        """Return how many needed markers the text lacks; None where the template refuses."""
        written = self._found(steps)
        return None if written is None else sum(marker not in written for marker, _, needed in self._markers if needed)

    def lost(self, steps: tuple[Step, ...]) -> tuple[int, ...]:
        """Return the messages with a marker that the text lacks."""
        written = self._found(steps) or frozenset()
        return tuple(sorted({index for marker, index, _ in self._markers if marker not in written}))

    def is_as_good(self, steps: tuple[Step, ...], others: tuple[Step, ...]) -> bool:
        """Whether the text with some steps lacks no more than with others."""
        missing, most = self.missing(steps), self.missing(others)
        return most is None or (missing is not None and missing <= most)

    def improved(
        self, best: tuple[Step, ...], steps: Sequence[Step], at_once: tuple[Step, ...] | None = None
    ) -> tuple[Step, ...]:
        """Return the best steps after trying some more.

        Args:
            best: The best ones so far.
            steps: What to try.
            at_once: What to begin with, to try each step with all before it, also with those that have not helped;
                None adds each to the best ones alone.
        """
        taken = at_once or ()
        for step in steps:
            if self.missing(best) == 0:
                break
            before = best if at_once is None else taken
            made = Plan(before).apply(self._outline)
            if step in before or step.change(made) == made:
                continue
            taken = (*before, step)
            if not self.is_as_good(best, taken):
                best = taken
        return best

    def _found(self, steps: tuple[Step, ...]) -> frozenset[str] | None:
        if steps not in self._written:
            try:
                # One pass for all markers: searching for each takes seconds with a thousand messages.
                self._written[steps] = frozenset(_MARKER.findall(self._render(Plan(steps).apply(self._outline))))
            except TemplateFault as fault:
                if fault.kind in {FaultKind.INVALID, FaultKind.LIMIT}:
                    raise
                self._written[steps] = None
        return self._written[steps]


def outlined(prompt: WirePrompt) -> tuple[WirePrompt, list[tuple[str, int, bool]]]:
    """Return the outline of a conversation, and its markers: each with its message's index and whether it is needed.

    A text beside calls is not needed: many templates have no place for it.
    """
    markers: list[tuple[str, int, bool]] = []

    def mark(index: int, is_needed: bool = True) -> str:
        marker = f"Kq{len(markers):04d}vz"
        markers.append((marker, index, is_needed))
        return marker

    messages = []
    for index, message in enumerate(prompt.messages):
        made = dict(message)
        content, calls = message["content"], message.get("tool_calls", ())
        if isinstance(content, list):
            made["content"] = [
                _outlined_part(part, mark(index, not calls)) if str(part.get("text") or "").strip() else part
                for part in content
            ]
        elif content and content.strip():
            made["content"] = mark(index, not calls)
        for key in REASONING_KEYS:
            if key in message:
                made[key] = "thought"
        if calls:
            made["tool_calls"] = [_outlined_call(call, mark(index)) for call in calls]
        messages.append(made)
    return WirePrompt(tuple(messages), prompt.tools), markers


def _outlined_part(part: Mapping[str, Any], marker: str) -> dict[str, Any]:
    # Some formats have the text under two names.
    return {key: marker if key in {"text", "content"} else each for key, each in part.items()}


def _outlined_call(call: Mapping[str, Any], marker: str) -> dict[str, Any]:
    function = call["function"]
    given = function["arguments"]
    name = next(iter(given), "value") if isinstance(given, dict) else "value"
    arguments: Any = {name: marker} if isinstance(given, dict) else json.dumps({name: marker})[:-1]
    return {**call, "function": {**function, "arguments": arguments}}


def last_resorts_for(template: object) -> tuple[Step, ...]:
    """Return the last steps to try for a template: its text, or its texts by name."""
    texts = template.values() if isinstance(template, Mapping) else (template,)
    if any(isinstance(text, str) and TAG in text for text in texts):
        return LAST_RESORTS
    return tuple(step for step in LAST_RESORTS if step is not TAGGED_CALLS)
