"""Conversations to text with a model's chat template: switches, repair, continued answers, and the errors of all that.

Used for text models and for vision-language models alike; who renders is one of ``template_sandbox``.
"""

import contextlib
import functools
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from mlxk.adapters.mlx.prompting.conversation_repair import Plan, last_resorts_for, make_plan, outlined
from mlxk.adapters.mlx.prompting.repair_steps import (
    GENERIC_TOOLS,
    LAST_RESORTS,
    SHORT_IDS,
    TAGGED_CALLS,
    Step,
    describe_tools,
)
from mlxk.adapters.mlx.prompting.template_inputs import (
    NO_SWITCH,
    REASONING_KEYS,
    UNREAD,
    AskedSwitches,
    WirePrompt,
    choose_switches,
)
from mlxk.adapters.mlx.prompting.template_sandbox import FaultKind, TemplateEngine, TemplateFault
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.conversation import Adaptation
from mlxk.domain.generation.request import GenerationRequest, nobody_left

_CONTINUED = "mlxk:continued-here "
"""Appended to the last message, to find where its text ends; a template that trims it trims the blank."""

_MOST_PLANS = 256
"""Plans cached; the least recently used is dropped."""

_FEW = 4
"""Messages whose outline is within the limits of any template that can be used at all."""

CONTINUED = Adaptation("answer-continued", "The last message is the assistant's: it was continued, not answered.")


@attrs.frozen
class RenderingJob:
    """How to render one conversation."""

    asked: AskedSwitches = attrs.field(factory=AskedSwitches)
    is_abandoned: Callable[[], bool] = nobody_left
    """Whether the client has gone."""
    parse_special: bool = False
    """Whether control tokens that the messages spell out are control tokens."""
    opens_answer: bool = True
    """Whether the text ends with the beginning of the assistant's message."""


def rendering_job(request: GenerationRequest, *, opens_answer: bool = True) -> RenderingJob:
    """Return how to render the conversation of a request."""
    asked = AskedSwitches(request.reasons, request.effort, request.settings.thinking_budget, request.template_options)
    return RenderingJob(asked, request.is_abandoned, request.parse_special, opens_answer)


@attrs.frozen
class RenderedConversation:
    """The text of a conversation."""

    text: str
    has_switch: bool
    """Whether the template was given a variable that switches reasoning on or off."""
    adaptations: tuple[Adaptation, ...]
    forms: tuple[str, ...] = ()
    """Names of the forms in which contents were given; see ``Step.form``."""


class ConversationRenderer:
    """Renders the conversations of one model, after the repair that its template needs.

    Args:
        engine: Renders.
        unnamed_switch: A switch to give to a library whose template cannot be read.
    """

    def __init__(self, engine: TemplateEngine, unnamed_switch: str | None = None) -> None:
        self._engine = engine
        self._unnamed_switch = unnamed_switch
        self._last_resorts = last_resorts_for(engine.template)
        self._plans: OrderedDict[str, Plan] = OrderedDict()
        self._unusable: TemplateFault | None = None

    def render(self, prompt: WirePrompt, job: RenderingJob) -> RenderedConversation:
        """Return the text of a conversation.

        Raises:
            ValidationError: The template cannot render it; names the message.
            InterruptedRunError: The client has gone.
        """
        described = bool(prompt.tools) and not self.reads_tools
        if described:
            prompt = describe_tools(prompt)
        if job.opens_answer:
            prompt = _without_blank_end(prompt)
        asked = job.asked
        chosen = choose_switches(self._engine.template, asked)
        variables = dict(chosen.variables)
        ineffective = chosen.adaptations
        if self._unnamed_switch is not None:
            # What else the library's code reads is not known.
            ineffective = tuple(each for each in ineffective if each is not NO_SWITCH and each.code != UNREAD)
            if asked.thinking is not None:
                variables.setdefault(self._unnamed_switch, asked.thinking)
        continued = job.opens_answer and _ends_with_answer(prompt)
        trial = _Job(self._engine, {"add_generation_prompt": job.opens_answer, **variables}, job.is_abandoned)
        try:
            plan = self._plan(prompt, trial, continued, LAST_RESORTS if described else self._last_resorts)
            text = trial.text(plan.apply(prompt), continued=continued)
        except TemplateFault as fault:
            raise self._error(fault, prompt, trial, continued=continued) from fault
        said = (
            *((GENERIC_TOOLS,) if described else ()),
            *plan.adaptations,
            *((CONTINUED,) if continued else ()),
            *ineffective,
        )
        forms = tuple(step.form for step in plan.steps if step.form)
        return RenderedConversation(text, chosen.has_switch or self._unnamed_switch in variables, said, forms)

    @property
    def template(self) -> object:
        """The text of the template, or its texts by name; None where a library has code instead, or there is none."""
        return self._engine.template

    @property
    def has_template(self) -> bool:
        """Whether there is a template, or code in its place."""
        return bool(self._engine.template) or self._unnamed_switch is not None

    @functools.cached_property
    def reads_tools(self) -> bool:
        """Whether the template shows tools to the model; also where it cannot be rendered at all."""
        with contextlib.suppress(TemplateFault):
            shown = make_plan(_OFFERING, self._sampled, self._last_resorts).apply(_OFFERING)
            return self._sampled(shown) != self._sampled(attrs.evolve(shown, tools=()))
        return True

    @functools.cached_property
    def wants_short_ids(self) -> bool:
        """Whether the template takes tool call ids of nine letters and digits only."""
        with contextlib.suppress(TemplateFault):
            return SHORT_IDS in make_plan(_CALLING, self._sampled, self._last_resorts).steps
        return False

    def _sampled(self, prompt: WirePrompt) -> str:
        """Return the text of a conversation that shows what the template can do."""
        job = _Job(self._engine, {"add_generation_prompt": True}, nobody_left)
        return job.text(prompt, continued=False)

    def _plan(self, prompt: WirePrompt, job: "_Job", continued: bool, last_resorts: tuple[Step, ...]) -> Plan:
        if self._unusable is not None:
            raise self._unusable
        key = f"{TAGGED_CALLS in last_resorts}{_shape(prompt, job.variables, continued)}"
        plan = self._plans.get(key)
        if plan is None:
            try:
                plan = make_plan(prompt, lambda outline: job.text(outline, continued=continued), last_resorts)
            except TemplateFault as fault:
                self._judge(fault, prompt, job)
                raise
            self._plans[key] = plan
            if len(self._plans) > _MOST_PLANS:
                self._plans.popitem(last=False)
        else:
            self._plans.move_to_end(key)
        return plan

    def _judge(self, fault: TemplateFault, prompt: WirePrompt, job: "_Job") -> None:
        """Remember a template that exceeds its limits whatever it is given, so that the next request does not wait."""
        if len(prompt.messages) <= _FEW:
            self._unusable = fault
            return
        try:
            job.text(_GREETING, continued=False)
        except TemplateFault as again:
            if again.kind is fault.kind:
                self._unusable = fault

    def _error(self, fault: TemplateFault, prompt: WirePrompt, job: "_Job", *, continued: bool) -> ValidationError:
        """Return the error for a conversation that cannot be rendered, with the message that is at fault."""
        if fault.kind is FaultKind.LIMIT:
            return ValidationError.in_field("messages", f"the model's chat template does not end here: {fault.message}")
        if fault.kind is FaultKind.INVALID:
            return ValidationError.in_field("messages", f"the model's chat template is invalid: {fault.message}")
        count = len(prompt.messages)
        if fault.kind is FaultKind.UNCONTINUED or (continued and self._renders(prompt, job, count)):
            return ValidationError.in_field(
                f"messages[{count - 1}]",
                "the model's chat template cannot continue a message of the assistant",
                hint="End the conversation with a message of the user, or of a tool.",
            )
        refused = fault.kind is FaultKind.REFUSED
        verb = "refuses" if refused else "cannot render"
        detail = f": {fault.message}" if refused else f" ({fault.message})"
        if prompt.tools and self._renders(attrs.evolve(prompt, tools=()), job, count):
            return ValidationError.in_field("tools", f"the model's chat template {verb} these tools{detail}")
        low, high = 0, count
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._renders(prompt, job, middle) else (low, middle)
        place = f"messages[{low}]" if count else "messages"
        return ValidationError.in_field(place, f"the model's chat template {verb} this conversation{detail}")

    def _renders(self, prompt: WirePrompt, job: "_Job", count: int) -> bool:
        """Whether the first messages of a conversation alone can be rendered."""
        part = attrs.evolve(prompt, messages=prompt.messages[:count])
        try:
            plan = make_plan(part, lambda outline: job.text(outline, continued=False), self._last_resorts)
            job.text(plan.apply(part), continued=False)
        except TemplateFault:
            return False
        return True


@attrs.frozen
class _Job:
    """One request's way of rendering."""

    engine: TemplateEngine
    variables: Mapping[str, object]
    is_abandoned: Callable[[], bool]

    def text(self, prompt: WirePrompt, *, continued: bool) -> str:
        """Return the text: up to where an answer begins, or up to the end of the last message's text.

        Raises:
            TemplateFault: It cannot be rendered.
        """
        if not continued:
            return self.engine.render(prompt, self.variables, self.is_abandoned)
        *earlier, last = prompt.messages
        marked = {**last, "content": _marked(last["content"])}
        text = self.engine.render(
            attrs.evolve(prompt, messages=(*earlier, marked)),
            {**self.variables, "add_generation_prompt": False},
            self.is_abandoned,
        )
        place = text.rfind(_CONTINUED.strip())
        if place < 0:
            raise TemplateFault(FaultKind.UNCONTINUED, "")
        return text[:place] if text.startswith(_CONTINUED, place) else text[:place].rstrip()


def _marked(content: Any) -> Any:  # noqa: ANN401 - text or parts
    if not isinstance(content, list):
        return f"{content}{_CONTINUED}"
    place = max(index for index, part in enumerate(content) if "text" in part)
    return [
        {**part, "text": f"{part['text']}{_CONTINUED}"} if index == place else part
        for index, part in enumerate(content)
    ]


_GREETING = WirePrompt(({"role": "user", "content": "x"},))

_CALLING = WirePrompt(
    (
        {"role": "user", "content": "x"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "call_0123456789abcdef01234567",
                    "type": "function",
                    "function": {"name": "look", "arguments": {"at": "x"}},
                }
            ],
        },
        {"role": "tool", "content": "x", "tool_call_id": "call_0123456789abcdef01234567", "name": "look"},
    ),
    (
        {
            "type": "function",
            "function": {
                "name": "look",
                "description": "Look.",
                "parameters": {"type": "object", "properties": {"at": {"type": "string", "description": "Where."}}},
            },
        },
    ),
)

_OFFERING = WirePrompt(_GREETING.messages, _CALLING.tools)
"""A conversation with a tool, to see whether a template changes with it."""


def _ends_with_answer(prompt: WirePrompt) -> bool:
    if not prompt.messages:
        return False
    last = prompt.messages[-1]
    return last["role"] == "assistant" and not last.get("tool_calls") and bool(last["content"])


def _without_blank_end(prompt: WirePrompt) -> WirePrompt:
    """Return a conversation without a last message of the assistant that has no text: there is nothing to continue."""
    if len(prompt.messages) > 1:
        last = prompt.messages[-1]
        content = last["content"]
        blank = not content or (isinstance(content, str) and not content.strip())
        if last["role"] == "assistant" and blank and not last.get("tool_calls") and REASONING_KEYS[0] not in last:
            return attrs.evolve(prompt, messages=prompt.messages[:-1])
    return prompt


def _shape(prompt: WirePrompt, variables: Mapping[str, object], continued: bool) -> str:
    """Return a key of all conversations with the same outline."""
    outline, _ = outlined(prompt)
    return json.dumps([outline.messages, outline.tools, variables, continued], sort_keys=True)
