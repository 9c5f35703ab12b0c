"""Renders conversations with a model's chat template: reasoning switches, repair, continued answers, and errors.

Used for text models and for vision-language models; ``template_sandbox`` has the engines that render.
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
    RequestedSwitches,
    WirePrompt,
    choose_switches,
)
from mlxk.adapters.mlx.prompting.template_sandbox import FaultKind, TemplateEngine, TemplateFault
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.conversation import Adaptation
from mlxk.domain.generation.request import GenerationRequest, nobody_left

_CONTINUED = "mlxk:continued-here "
"""Appended to the last message, to find where its text ends; the blank shows whether the template trims the text."""

_MAX_PLANS = 256
"""Cached plans; the least recently used is dropped first."""

_FEW = 4
"""A template that exceeds its limits with so few messages is unusable."""

CONTINUED = Adaptation("answer-continued", "The last message is the assistant's: it was continued, not answered.")


@attrs.frozen
class RenderingJob:
    """How to render one conversation."""

    switches: RequestedSwitches = attrs.field(factory=RequestedSwitches)
    is_abandoned: Callable[[], bool] = nobody_left
    """Returns whether the client has gone."""
    parse_special: bool = False
    """Whether control tokens that the messages spell are control tokens, not text."""
    opens_answer: bool = True
    """Whether the text ends with the beginning of the assistant's message (``add_generation_prompt``)."""


def rendering_job(request: GenerationRequest, *, opens_answer: bool = True) -> RenderingJob:
    """Return how to render the conversation of a request."""
    budget = request.settings.thinking_budget
    switches = RequestedSwitches(request.reasons, request.effort, budget, request.template_options)
    return RenderingJob(switches, request.is_abandoned, request.parse_special, opens_answer)


@attrs.frozen
class RenderedConversation:
    """The text of a conversation."""

    text: str
    has_switch: bool
    """Whether the template got a variable that switches reasoning on or off."""
    adaptations: tuple[Adaptation, ...]
    forms: tuple[str, ...] = ()
    """Names of the forms of contents that the template needed; see ``Step.form``."""


class ConversationRenderer:
    """Renders the conversations of one model, after the repair that its template needs.

    Args:
        engine: Renders a conversation as it is.
        unnamed_switch: Variable that switches reasoning, for a library's code, whose variables cannot be read.
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
        describes_tools = bool(prompt.tools) and not self.reads_tools
        if describes_tools:
            prompt = describe_tools(prompt)
        if job.opens_answer:
            prompt = _without_blank_answer(prompt)
        chosen = choose_switches(self._engine.template, job.switches)
        variables = dict(chosen.variables)
        ineffective = chosen.adaptations
        if self._unnamed_switch is not None:
            # The library's code may read any variable.
            ineffective = tuple(each for each in ineffective if each is not NO_SWITCH and each.code != UNREAD)
            if job.switches.thinking is not None:
                variables.setdefault(self._unnamed_switch, job.switches.thinking)
        continued = job.opens_answer and _ends_with_answer(prompt)
        call = _RenderCall(self._engine, {"add_generation_prompt": job.opens_answer, **variables}, job.is_abandoned)
        try:
            plan = self._plan(prompt, call, continued, LAST_RESORTS if describes_tools else self._last_resorts)
            text = call.text(plan.apply(prompt), continued=continued)
        except TemplateFault as fault:
            raise self._error(fault, prompt, call, continued=continued) from fault
        adaptations = (
            *((GENERIC_TOOLS,) if describes_tools else ()),
            *plan.adaptations,
            *((CONTINUED,) if continued else ()),
            *ineffective,
        )
        forms = tuple(step.form for step in plan.steps if step.form)
        return RenderedConversation(text, chosen.has_switch or self._unnamed_switch in variables, adaptations, forms)

    @property
    def template(self) -> object:
        """The text of the template, or a mapping of texts by name; None for a library's code, or without a template."""
        return self._engine.template

    @property
    def has_template(self) -> bool:
        """Whether there is a template, or a library's code in its place."""
        return bool(self._engine.template) or self._unnamed_switch is not None

    @functools.cached_property
    def reads_tools(self) -> bool:
        """Whether the rendered text changes with the tools; True where a probe cannot be rendered."""
        with contextlib.suppress(TemplateFault):
            probe = make_plan(_OFFERING, self._probe, self._last_resorts).apply(_OFFERING)
            return self._probe(probe) != self._probe(attrs.evolve(probe, tools=()))
        return True

    @functools.cached_property
    def wants_short_ids(self) -> bool:
        """Whether the template accepts only tool call ids of nine letters and digits."""
        with contextlib.suppress(TemplateFault):
            return SHORT_IDS in make_plan(_CALLING, self._probe, self._last_resorts).steps
        return False

    def _probe(self, prompt: WirePrompt) -> str:
        """Return the text of a conversation that tests an ability of the template."""
        return _RenderCall(self._engine, {"add_generation_prompt": True}, nobody_left).text(prompt, continued=False)

    def _plan(self, prompt: WirePrompt, call: "_RenderCall", continued: bool, last_resorts: tuple[Step, ...]) -> Plan:
        if self._unusable is not None:
            raise self._unusable
        key = f"{TAGGED_CALLS in last_resorts}{_outline_key(prompt, call.variables, continued)}"
        plan = self._plans.get(key)
        if plan is None:
            try:
                plan = make_plan(prompt, lambda outline: call.text(outline, continued=continued), last_resorts)
            except TemplateFault as fault:
                self._note_unusable(fault, prompt, call)
                raise
            self._plans[key] = plan
            if len(self._plans) > _MAX_PLANS:
                self._plans.popitem(last=False)
        else:
            self._plans.move_to_end(key)
        return plan

    def _note_unusable(self, fault: TemplateFault, prompt: WirePrompt, call: "_RenderCall") -> None:
        """Remember the fault of a template that fails for short conversations, too: later requests fail at once."""
        if len(prompt.messages) <= _FEW:
            self._unusable = fault
            return
        try:
            call.text(_GREETING, continued=False)
        except TemplateFault as second:
            if second.kind is fault.kind:
                self._unusable = fault

    def _error(
        self, fault: TemplateFault, prompt: WirePrompt, call: "_RenderCall", *, continued: bool
    ) -> ValidationError:
        """Return the error for a conversation that cannot be rendered; it names the message or tools at fault."""
        if fault.kind is FaultKind.LIMIT:
            return ValidationError.in_field("messages", f"the model's chat template does not end here: {fault.message}")
        if fault.kind is FaultKind.INVALID:
            return ValidationError.in_field("messages", f"the model's chat template is invalid: {fault.message}")
        count = len(prompt.messages)
        if fault.kind is FaultKind.UNCONTINUED or (continued and self._renders(prompt, call, count)):
            return ValidationError.in_field(
                f"messages[{count - 1}]",
                "the model's chat template cannot continue a message of the assistant",
                hint="End the conversation with a message of the user, or of a tool.",
            )
        refused = fault.kind is FaultKind.REFUSED
        verb = "refuses" if refused else "cannot render"
        detail = f": {fault.message}" if refused else f" ({fault.message})"
        if prompt.tools and self._renders(attrs.evolve(prompt, tools=()), call, count):
            return ValidationError.in_field("tools", f"the model's chat template {verb} these tools{detail}")
        low, high = 0, count
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._renders(prompt, call, middle) else (low, middle)
        field = f"messages[{low}]" if count else "messages"
        return ValidationError.in_field(field, f"the model's chat template {verb} this conversation{detail}")

    def _renders(self, prompt: WirePrompt, call: "_RenderCall", count: int) -> bool:
        """Whether the first ``count`` messages of a conversation can be rendered."""
        part = attrs.evolve(prompt, messages=prompt.messages[:count])
        try:
            plan = make_plan(part, lambda outline: call.text(outline, continued=False), self._last_resorts)
            call.text(plan.apply(part), continued=False)
        except TemplateFault:
            return False
        return True


@attrs.frozen
class _RenderCall:
    """Renders conversations with the template variables of one request."""

    engine: TemplateEngine
    variables: Mapping[str, object]
    is_abandoned: Callable[[], bool]

    def text(self, prompt: WirePrompt, *, continued: bool) -> str:
        """Return the rendered text; with ``continued`` up to the end of the last message's content.

        Raises:
            TemplateFault: The conversation cannot be rendered.
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
        end = text.rfind(_CONTINUED.strip())
        if end < 0:
            raise TemplateFault(FaultKind.UNCONTINUED, "")
        return text[:end] if text.startswith(_CONTINUED, end) else text[:end].rstrip()


def _marked(content: Any) -> Any:  # noqa: ANN401 - text or parts
    if not isinstance(content, list):
        return f"{content}{_CONTINUED}"
    last = max(index for index, part in enumerate(content) if "text" in part)
    return [
        {**part, "text": f"{part['text']}{_CONTINUED}"} if index == last else part for index, part in enumerate(content)
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
"""A conversation with a tool, to test whether the template reads tools."""


def _ends_with_answer(prompt: WirePrompt) -> bool:
    if not prompt.messages:
        return False
    last = prompt.messages[-1]
    return last["role"] == "assistant" and not last.get("tool_calls") and bool(last["content"])


def _without_blank_answer(prompt: WirePrompt) -> WirePrompt:
    """Remove a last message of the assistant without text, which leaves nothing to continue."""
    if len(prompt.messages) > 1:
        last = prompt.messages[-1]
        content = last["content"]
        blank = not content or (isinstance(content, str) and not content.strip())
        if last["role"] == "assistant" and blank and not last.get("tool_calls") and REASONING_KEYS[0] not in last:
            return attrs.evolve(prompt, messages=prompt.messages[:-1])
    return prompt


def _outline_key(prompt: WirePrompt, variables: Mapping[str, object], continued: bool) -> str:
    """Return a cache key, equal for all conversations with the same outline and variables."""
    outline, _ = outlined(prompt)
    return json.dumps([outline.messages, outline.tools, variables, continued], sort_keys=True)
