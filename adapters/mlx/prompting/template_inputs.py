"""What chat templates are given: messages and tools in OpenAI's form, as JSON values, and switches for reasoning.

Templates have switches (on or off), levels, or neither; their names and values differ. A request states them once, and
they are mapped to the nearest that the template reads, which its text tells.
"""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.meta import find_undeclared_variables

from mlxk.adapters.mlx.prompting.template_process import GenerationTag
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.conversation import Adaptation, Conversation, Message, ToolCall
from mlxk.domain.generation.settings import Effort

WireMessage = dict[str, Any]
"""A message."""

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Names under which templates read the reasoning of a message."""

_ARGUMENTS = "messages[{}].tool_calls[{}].function.arguments"
"""Path of a call's arguments in a request, by message and call."""

_SURROGATE = "\\ud"
"""Beginning of the JSON escape of a surrogate, in lower case."""


@attrs.frozen
class WirePrompt:
    """A conversation as a template reads it."""

    messages: tuple[WireMessage, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    has_empty_lists: bool = False
    """Whether tools and documents that there are none of are empty lists, instead of null."""


def wire_prompt(conversation: Conversation) -> WirePrompt:
    """Return a conversation in the form that templates expect.

    Raises:
        ValidationError: A tool is no JSON object, or arguments are JSON but no valid object.
    """
    tools = tuple(_parsed(tool, f"tools[{index}]") for index, tool in enumerate(conversation.tools))
    return WirePrompt(tuple(wire_messages(conversation.messages)), tools)


def wire_messages(messages: Sequence[Message]) -> list[WireMessage]:
    """Return messages in the form that templates expect: OpenAI's, with arguments as objects and results named.

    Incomplete arguments remain text.

    Raises:
        ValidationError: Arguments are JSON, but no valid object.
    """
    names = {call.id: call.name for message in messages for call in message.tool_calls if call.id}
    return [_wire_message(message, index, names) for index, message in enumerate(messages)]


def _wire_message(message: Message, index: int, names: dict[str, str]) -> WireMessage:
    wire: WireMessage = {"role": message.role.value, "content": message.content}
    if message.reasoning:
        wire |= dict.fromkeys(REASONING_KEYS[:2], message.reasoning)
    if message.tool_calls:
        calls = enumerate(message.tool_calls)
        wire["tool_calls"] = [_wire_call(call, _ARGUMENTS.format(index, place)) for place, call in calls]
    if message.tool_call_id is not None:
        wire["tool_call_id"] = message.tool_call_id
        if message.tool_call_id in names:
            wire["name"] = names[message.tool_call_id]
    return wire


def _wire_call(call: ToolCall, place: str) -> dict[str, object]:
    arguments = _parsed(call.arguments, place, or_text=True) if call.arguments.strip() else {}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _parsed(text: str, place: str, *, or_text: bool = False) -> Any:  # noqa: ANN401 - what JSON holds
    """Return the JSON object in a text; with ``or_text`` the text itself where it is no JSON."""
    try:
        value = json.loads(text)
        if _SURROGATE in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValidationError.in_field(place, "is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValidationError.in_field(place, "must not contain half a surrogate pair") from error
    except ValueError as error:
        if or_text:
            return text
        raise ValidationError.in_field(place, f"is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValidationError.in_field(place, "must be a JSON object")
    return value


SWITCHES = ("enable_thinking", "thinking", "reasoning")
"""Variables that are true or false: Qwen, GLM and most others have the first, DeepSeek and Granite the second."""

_INVERSE_SWITCHES = ("skip_thinking",)

_MODES = ("thinking_mode", "think_mode", "reasoning_mode")
"""Variables that are one of the words below."""

_OFF_WORDS = ("disabled", "off", "none", "no_think", "nothink", "disable", "chat", "false")
_ON_WORDS = ("enabled", "on", "thinking", "think", "enable", "true", "adaptive", "auto")

_EFFORTS = ("reasoning_effort", "reasoning_strength", "thinking_effort")
"""Variables for the level: the first of gpt-oss and others."""

_BUDGET = "thinking_budget"
"""The variable for the number of tokens: Seed, where 0 is off."""

_LEVELS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""In order; a request may state all but the last."""

_COMMON_LEVELS = ("low", "medium", "high")
"""Of templates that write whatever they are given."""

NO_EFFORT = Adaptation(
    "reasoning-effort-without-effect", "The reasoning effort has no effect: the model's chat template has no levels."
)
UNREAD = "template-options-without-effect"
"""The code for options that the template does not read."""

NO_SWITCH = Adaptation(
    "thinking-without-effect", "Switching reasoning on has no effect: the model's chat template has no switch for it."
)


@attrs.frozen
class TemplateReading:
    """What a template reads."""

    variables: frozenset[str] = frozenset()
    """Names that it reads without setting them first; none for an invalid template."""
    words: Mapping[str, frozenset[str]] = attrs.field(factory=dict)
    """By variable, the texts that it is compared with."""
    defaults: Mapping[str, frozenset[str]] = attrs.field(factory=dict)
    """By variable, its texts when it is not given."""


@attrs.frozen
class ChosenSwitches:
    """The variables for a request."""

    variables: Mapping[str, object]
    has_switch: bool = False
    """Whether one of them switches reasoning on or off."""
    adaptations: tuple[Adaptation, ...] = ()


@attrs.frozen
class AskedSwitches:
    """What a request says about reasoning."""

    thinking: bool | None = None
    """Whether the model reasons first; None keeps the template's default."""
    effort: Effort | None = None
    budget: int | None = None
    """Most tokens of reasoning."""
    options: Mapping[str, Any] = attrs.field(factory=dict)
    """Variables by the template's own names; they win."""


def choose_switches(template: object, asked: AskedSwitches) -> ChosenSwitches:
    """Return the variables to pass to a template, by the names that it reads.

    Args:
        template: Its text, or several texts by name, as tokenizers hold them; anything else reads nothing.
        asked: What the request says.
    """
    readings = _readings(template)
    read = frozenset[str]().union(*(each.variables for each in readings))
    variables: dict[str, object] = {}
    adaptations: list[Adaptation] = []
    levels = {name: level for name in _EFFORTS if (level := _level(readings, name, asked)) is not None}
    variables |= {name: level for name, level in levels.items() if level}
    thinking = asked.thinking
    if thinking is None and asked.effort is not None and not levels:
        thinking = asked.effort not in {Effort.NONE, Effort.MINIMAL}
    switches = _switches(readings, read, thinking) if thinking is not None else {}
    if asked.budget is not None and _BUDGET in read:
        variables[_BUDGET] = asked.budget
    elif thinking is False and _BUDGET in read:
        switches[_BUDGET] = 0
    if asked.effort not in {None, Effort.NONE} and not levels and not switches:
        adaptations.append(NO_EFFORT)
    if asked.thinking and not switches and not levels:
        adaptations.append(NO_SWITCH)
    unread = [name for name in asked.options if name not in read and not (switches and name in SWITCHES)]
    if unread:
        adaptations.append(Adaptation(UNREAD, f"The model's chat template does not read {', '.join(unread)}."))
    return ChosenSwitches({**variables, **switches, **asked.options}, bool(switches), tuple(adaptations))


def switch_names(template: object) -> tuple[str, ...]:
    """Return the variables that a template reads to switch reasoning on or off, or to limit it."""
    read = frozenset[str]().union(*(each.variables for each in _readings(template)))
    return tuple(name for name in (*SWITCHES, *_INVERSE_SWITCHES, *_MODES, _BUDGET) if name in read)


def effort_levels(template: object) -> tuple[str, ...]:
    """Return the levels of reasoning that a template knows, from least to most; empty when it reads none."""
    readings = _readings(template)
    names = [name for name in _EFFORTS if any(name in each.variables for each in readings)]
    words = frozenset[str]().union(*(_words(readings, name) for name in names))
    if not names:
        return ()
    return tuple(word for word in _LEVELS if word in words) or _COMMON_LEVELS


def _readings(template: object) -> list[TemplateReading]:
    texts = template.values() if isinstance(template, Mapping) else (template,)
    return [read_template(text) for text in texts if isinstance(text, str)]


def _switches(readings: Sequence[TemplateReading], read: frozenset[str], thinking: bool) -> dict[str, object]:
    found: dict[str, object] = {name: thinking for name in SWITCHES if name in read}
    found |= {name: not thinking for name in _INVERSE_SWITCHES if name in read}
    for name in _MODES:
        known = _words(readings, name)
        word = next((each for each in (_ON_WORDS if thinking else _OFF_WORDS) if each in known), None)
        if word is not None:
            found[name] = word
    return found


def _words(readings: Sequence[TemplateReading], name: str) -> frozenset[str]:
    return frozenset[str]().union(
        *(each.words.get(name, frozenset()) | each.defaults.get(name, frozenset()) for each in readings)
    )


def _level(readings: Sequence[TemplateReading], name: str, asked: AskedSwitches) -> str | None:
    """Return the level nearest to the effort: empty where leaving the variable out is nearest, None without levels."""
    wanted = asked.effort.value if asked.effort is not None else "none" if asked.thinking is False else None
    if wanted is None or not any(name in each.variables for each in readings):
        return None
    compared = {word for each in readings for word in each.words.get(name, ()) if word in _LEVELS}
    default = {word for each in readings for word in each.defaults.get(name, ()) if word in _LEVELS}
    if asked.effort is None and compared.isdisjoint({"none", "minimal"}):
        return None  # it has levels, but none that is off
    known = {word: word for word in (compared | default if compared else {*_COMMON_LEVELS, *default})}
    if compared and not default:
        known.setdefault("medium", "")
    place = _LEVELS.index(wanted)
    return known[min(known, key=lambda word: (abs(_LEVELS.index(word) - place), _LEVELS.index(word)))]


@functools.lru_cache(maxsize=16)
def read_template(text: str) -> TemplateReading:
    """Read a template; it is only parsed, never rendered."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols", GenerationTag])
    try:
        tree = environment.parse(text)
        words, defaults = _compared(tree), _defaults(tree)
        variables = frozenset(find_undeclared_variables(tree))  # last: it folds the lists in the tree into constants
    except (TemplateSyntaxError, RecursionError):
        return TemplateReading()
    return TemplateReading(
        variables,
        {name: frozenset(each) for name, each in words.items()},
        {name: frozenset(each) for name, each in defaults.items()},
    )


def _compared(tree: nodes.Template) -> dict[str, set[str]]:
    """Return the words that a template compares each variable with."""
    words: dict[str, set[str]] = {}
    for compare in tree.find_all(nodes.Compare):
        sides = [compare.expr, *(operand.expr for operand in compare.ops)]
        names = [each.name for side in sides if (each := _name(side)) is not None]
        for name in names:
            words.setdefault(name, set()).update(word for side in sides for word in _texts(side))
    return words


def _defaults(tree: nodes.Template) -> dict[str, set[str]]:
    """Return the words that a template has for each variable that is not given."""
    defaults: dict[str, set[str]] = {}
    for choice in tree.find_all(nodes.CondExpr):
        given = _name(choice.expr1)
        if given is not None and choice.expr2 is not None:
            defaults.setdefault(given.name, set()).update(_texts(choice.expr2))
    for filtered in tree.find_all(nodes.Filter):
        given = _name(filtered.node) if filtered.name in {"default", "d"} and filtered.node is not None else None
        if given is not None:
            defaults.setdefault(given.name, set()).update(word for each in filtered.args for word in _texts(each))
    for assigned in tree.find_all(nodes.Assign):
        if isinstance(assigned.target, nodes.Name):
            defaults.setdefault(assigned.target.name, set()).update(_texts(assigned.node))
    return defaults


def _name(node: nodes.Node) -> nodes.Name | None:
    """Return the variable that an expression is, also below a filter such as ``lower``."""
    while isinstance(node, nodes.Filter) and node.node is not None and node.name in {"lower", "trim", "string"}:
        node = node.node
    return node if isinstance(node, nodes.Name) else None


def _texts(node: nodes.Node) -> Iterator[str]:
    if isinstance(node, nodes.Const) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, (nodes.List, nodes.Tuple)):
        for each in node.items:
            yield from _texts(each)
