"""Fits conversations to chat templates that refuse them or leave out a part of them.

To test a template, an outline of the conversation is rendered: the same roles, calls and kinds of content, with a
marker in place of every text. The template accepts it when it raises nothing and writes every marker. Otherwise the
steps of ``repair_steps`` are tried, and only necessary ones are kept. So no template is named here, and no conversation
is changed without need.
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
    """The steps for all conversations with one outline."""

    steps: tuple[Step, ...] = ()
    lost: tuple[int, ...] = ()
    """Indices of the messages that the template leaves out, wholly or in part, in spite of the steps."""

    def apply(self, prompt: WirePrompt) -> WirePrompt:
        """Return the conversation after the steps."""
        for step in self.steps:
            prompt = step.change(prompt)
        return prompt

    @property
    def adaptations(self) -> tuple[Adaptation, ...]:
        """The changes to report to the client."""
        adaptations = [step.adaptation for step in self.steps if step.adaptation is not None]
        if self.lost:
            names = ", ".join(f"messages[{index}]" for index in self.lost)
            adaptations.append(
                Adaptation("text-left-out", f"The model's chat template leaves out the text, or a part, of {names}.")
            )
        return tuple(dict.fromkeys(adaptations))


def make_plan(
    prompt: WirePrompt, render: Callable[[WirePrompt], str], last_resorts: Sequence[Step] = LAST_RESORTS
) -> Plan:
    """Return the steps with which a template accepts conversations like this one; an empty plan if none help.

    Args:
        prompt: The conversation.
        render: Renders an outline of it.
        last_resorts: The steps to try where no others help.

    Raises:
        TemplateFault: The template is invalid, or exceeds its limits.
    """
    outline, markers = outlined(prompt)
    trial = _Trial(outline, markers, render)
    forms = [*itertools.combinations(FORMS, 1), *itertools.combinations(FORMS, 2)]
    best: tuple[Step, ...] = ()
    for form in forms:
        if trial.missing(best) != 0 and not trial.is_as_good(best, form):
            best = form
    for steps in (REPAIRS, (*REPAIRS, *last_resorts)):
        best = trial.improve(best, steps)
        # Several may be needed before the template accepts anything.
        for form in ((), *forms):
            if trial.missing(best) is None or (form == () and trial.missing(best) != 0):
                best = trial.improve(best, steps, form)
    for step in reversed(best):
        fewer = tuple(each for each in best if each is not step)
        if trial.is_as_good(fewer, best):
            best = fewer
    return Plan(best, trial.lost(best)) if trial.missing(best) is not None else Plan()


_MARKER = re.compile(r"Kq\d+vz")


class _Trial:
    """Renders an outline after different steps; each combination once."""

    def __init__(
        self, outline: WirePrompt, markers: Sequence[tuple[str, int, bool]], render: Callable[[WirePrompt], str]
    ) -> None:
        self._outline = outline
        self._markers = markers
        self._render = render
        self._rendered_markers: dict[tuple[Step, ...], frozenset[str] | None] = {}
        """The markers in the rendered text, by steps; None where the template raises."""

    def missing(self, steps: tuple[Step, ...]) -> int | None:
        """Return how many required markers the text lacks; None where the template raises."""
        found = self._markers_after(steps)
        return None if found is None else sum(marker not in found for marker, _, required in self._markers if required)

    def lost(self, steps: tuple[Step, ...]) -> tuple[int, ...]:
        """Return the indices of the messages with a marker that the text lacks."""
        found = self._markers_after(steps) or frozenset()
        return tuple(sorted({index for marker, index, _ in self._markers if marker not in found}))

    def is_as_good(self, steps: tuple[Step, ...], others: tuple[Step, ...]) -> bool:
        """Whether the text after ``steps`` lacks no more required markers than after ``others``."""
        missing, missing_after_others = self.missing(steps), self.missing(others)
        return missing_after_others is None or (missing is not None and missing <= missing_after_others)

    def improve(
        self, best: tuple[Step, ...], steps: Sequence[Step], start: tuple[Step, ...] | None = None
    ) -> tuple[Step, ...]:
        """Return the best combination of steps after trying more.

        Args:
            best: The best combination so far.
            steps: The steps to try.
            start: First combination of a chain in which every further step is added, whether it helps or not. None
                tries each step with the best combination only.
        """
        chain = start or ()
        for step in steps:
            if self.missing(best) == 0:
                break
            before = best if start is None else chain
            outline = Plan(before).apply(self._outline)
            if step in before or step.change(outline) == outline:
                continue
            chain = (*before, step)
            if not self.is_as_good(best, chain):
                best = chain
        return best

    def _markers_after(self, steps: tuple[Step, ...]) -> frozenset[str] | None:
        if steps not in self._rendered_markers:
            markers = None
            try:
                # One pass for all markers: searching for each takes seconds with a thousand messages.
                markers = frozenset(_MARKER.findall(self._render(Plan(steps).apply(self._outline))))
            except TemplateFault as fault:
                if fault.kind in {FaultKind.INVALID, FaultKind.LIMIT}:
                    raise
            self._rendered_markers[steps] = markers
        return self._rendered_markers[steps]


def outlined(prompt: WirePrompt) -> tuple[WirePrompt, list[tuple[str, int, bool]]]:
    """Return the outline of a conversation and its markers: marker, index of the message, and whether it is required.

    The marker of a text beside tool calls is not required, since many templates have no place for such a text.
    """
    markers: list[tuple[str, int, bool]] = []

    def mark(index: int, required: bool = True) -> str:
        marker = f"Kq{len(markers):04d}vz"
        markers.append((marker, index, required))
        return marker

    messages = []
    for index, message in enumerate(prompt.messages):
        outline = dict(message)
        content, calls = message["content"], message.get("tool_calls", ())
        if isinstance(content, list):
            outline["content"] = [
                _outlined_part(part, mark(index, not calls)) if str(part.get("text") or "").strip() else part
                for part in content
            ]
        elif content and content.strip():
            outline["content"] = mark(index, not calls)
        for key in REASONING_KEYS:
            if key in message:
                outline[key] = "thought"
        if calls:
            outline["tool_calls"] = [_outlined_call(call, mark(index)) for call in calls]
        messages.append(outline)
    return WirePrompt(tuple(messages), prompt.tools), markers


def _outlined_part(part: Mapping[str, Any], marker: str) -> dict[str, Any]:
    # Some formats repeat the text under "content".
    return {key: marker if key in {"text", "content"} else value for key, value in part.items()}


def _outlined_call(call: Mapping[str, Any], marker: str) -> dict[str, Any]:
    function = call["function"]
    original = function["arguments"]
    name = next(iter(original), "value") if isinstance(original, dict) else "value"
    # Arguments as text are incomplete JSON, and so is their outline.
    arguments: Any = {name: marker} if isinstance(original, dict) else json.dumps({name: marker})[:-1]
    return {**call, "function": {**function, "arguments": arguments}}


def last_resorts_for(template: object) -> tuple[Step, ...]:
    """Return the last steps to try for a template, which is its text or a mapping of texts by name."""
    texts = template.values() if isinstance(template, Mapping) else (template,)
    if any(isinstance(text, str) and TAG in text for text in texts):
        return LAST_RESORTS
    return tuple(step for step in LAST_RESORTS if step is not TAGGED_CALLS)
