"""The input of chat templates: messages and tools in OpenAI's form, as JSON values, and variables for reasoning.

Templates switch reasoning by flags, by levels, or not at all, under different names and with different values. A
request states switch and effort once; they are mapped to the nearest variables and values that the template's text
reads.
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
"""A message as JSON."""

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Keys under which templates read the reasoning of a message."""

_ARGUMENTS = "messages[{}].tool_calls[{}].function.arguments"
"""Field path of a call's arguments in a request, given the indices of message and call."""

_SURROGATE = "\\ud"
"""Beginning of the JSON escape of a surrogate, in lower case."""


@attrs.frozen
class WirePrompt:
    """A conversation as a template reads it."""

    messages: tuple[WireMessage, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    has_empty_lists: bool = False
    """Whether missing tools and documents are passed as empty lists instead of null."""


def wire_prompt(conversation: Conversation) -> WirePrompt:
    """Return a conversation in the form that templates expect.

    Raises:
        ValidationError: A tool is not a JSON object, or arguments are valid JSON but not an object.
    """
    tools = tuple(_parsed(tool, f"tools[{index}]") for index, tool in enumerate(conversation.tools))
    return WirePrompt(tuple(wire_messages(conversation.messages)), tools)


def wire_messages(messages: Sequence[Message]) -> list[WireMessage]:
    """Return messages in OpenAI's form, with arguments as objects and the function's name in each tool result.

    Incomplete arguments remain text.

    Raises:
        ValidationError: Arguments are valid JSON, but not an object.
    """
    names = {call.id: call.name for message in messages for call in message.tool_calls if call.id}
    return [_wire_message(message, index, names) for index, message in enumerate(messages)]


def _wire_message(message: Message, index: int, names: dict[str, str]) -> WireMessage:
    wire: WireMessage = {"role": message.role.value, "content": message.content}
    if message.reasoning:
        wire |= dict.fromkeys(REASONING_KEYS[:2], message.reasoning)
    if message.tool_calls:
        calls = enumerate(message.tool_calls)
        wire["tool_calls"] = [_wire_call(call, _ARGUMENTS.format(index, number)) for number, call in calls]
    if message.tool_call_id is not None:
        wire["tool_call_id"] = message.tool_call_id
        if message.tool_call_id in names:
            wire["name"] = names[message.tool_call_id]
    return wire


def _wire_call(call: ToolCall, field: str) -> dict[str, object]:
    arguments = _parsed(call.arguments, field, or_text=True) if call.arguments.strip() else {}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _parsed(text: str, field: str, *, or_text: bool = False) -> Any:  # noqa: ANN401 - JSON
    """Parse a JSON object; with ``or_text``, return the text itself where it is not valid JSON.

    Raises:
        ValidationError: It is not an object; names the field.
    """
    try:
        value = json.loads(text)
        if _SURROGATE in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValidationError.in_field(field, "is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValidationError.in_field(field, "must not contain half a surrogate pair") from error
    except ValueError as error:
        if or_text:
            return text
        raise ValidationError.in_field(field, f"is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValidationError.in_field(field, "must be a JSON object")
    return value


SWITCHES = ("enable_thinking", "thinking", "reasoning")
"""Boolean variables: Qwen, GLM and most others read the first, DeepSeek and Granite the second."""

_INVERSE_SWITCHES = ("skip_thinking",)

_MODES = ("thinking_mode", "think_mode", "reasoning_mode")
"""Variables whose value is one of the words below."""

_OFF_WORDS = ("disabled", "off", "none", "no_think", "nothink", "disable", "chat", "false")
_ON_WORDS = ("enabled", "on", "thinking", "think", "enable", "true", "adaptive", "auto")

_EFFORTS = ("reasoning_effort", "reasoning_strength", "thinking_effort")
"""Variables for the level: gpt-oss and others read the first."""

_BUDGET = "thinking_budget"
"""Variable for the number of reasoning tokens, as in Seed's templates, where 0 switches reasoning off."""

_LEVELS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""Levels in order; a request may state all but the last."""

_COMMON_LEVELS = ("low", "medium", "high")
"""Assumed for templates that write the level without comparing it with words."""

NO_EFFORT = Adaptation(
    "reasoning-effort-without-effect", "The reasoning effort has no effect: the model's chat template has no levels."
)
UNREAD = "template-options-without-effect"
"""Code of the adaptation for variables that the template does not read."""

NO_SWITCH = Adaptation(
    "thinking-without-effect", "Switching reasoning on has no effect: the model's chat template has no switch for it."
)


@attrs.frozen
class TemplateVariables:
    """The variables that a template reads."""

    names: frozenset[str] = frozenset()
    """Variables that it reads without setting them first; none for an invalid template."""
    words: Mapping[str, frozenset[str]] = attrs.field(factory=dict)
    """By variable, the strings that it is compared with."""
    defaults: Mapping[str, frozenset[str]] = attrs.field(factory=dict)
    """By variable, its default strings."""


@attrs.frozen
class ChosenSwitches:
    """The variables to pass to a template for a request."""

    variables: Mapping[str, object]
    has_switch: bool = False
    """Whether one of them switches reasoning on or off."""
    adaptations: tuple[Adaptation, ...] = ()


@attrs.frozen
class RequestedSwitches:
    """What a request says about reasoning."""

    thinking: bool | None = None
    """Whether the model reasons first; None keeps the template's default."""
    effort: Effort | None = None
    budget: int | None = None
    """Maximum number of reasoning tokens."""
    options: Mapping[str, Any] = attrs.field(factory=dict)
    """Variables by the template's own names; they override the others."""


def choose_switches(template: object, requested: RequestedSwitches) -> ChosenSwitches:
    """Return the variables to pass to a template, by the names that it reads.

    Args:
        template: Its text, or several texts by name, as tokenizers hold them; anything else reads no variables.
        requested: What the request says.
    """
    texts = _parsed_templates(template)
    read = frozenset[str]().union(*(each.names for each in texts))
    variables: dict[str, object] = {}
    adaptations: list[Adaptation] = []
    levels = {name: level for name in _EFFORTS if (level := _level(texts, name, requested)) is not None}
    variables |= {name: level for name, level in levels.items() if level}
    thinking = requested.thinking
    if thinking is None and requested.effort is not None and not levels:
        thinking = requested.effort not in {Effort.NONE, Effort.MINIMAL}
    switches = _switches(texts, read, thinking) if thinking is not None else {}
    if requested.budget is not None and _BUDGET in read:
        variables[_BUDGET] = requested.budget
    elif thinking is False and _BUDGET in read:
        switches[_BUDGET] = 0
    if requested.effort not in {None, Effort.NONE} and not levels and not switches:
        adaptations.append(NO_EFFORT)
    if requested.thinking and not switches and not levels:
        adaptations.append(NO_SWITCH)
    unread = [name for name in requested.options if name not in read and not (switches and name in SWITCHES)]
    if unread:
        adaptations.append(Adaptation(UNREAD, f"The model's chat template does not read {', '.join(unread)}."))
    return ChosenSwitches({**variables, **switches, **requested.options}, bool(switches), tuple(adaptations))


def switch_names(template: object) -> tuple[str, ...]:
    """Return the variables that a template reads to switch reasoning on or off, or to limit it."""
    read = frozenset[str]().union(*(each.names for each in _parsed_templates(template)))
    return tuple(name for name in (*SWITCHES, *_INVERSE_SWITCHES, *_MODES, _BUDGET) if name in read)


def effort_levels(template: object) -> tuple[str, ...]:
    """Return the levels of reasoning that a template knows, from least to most; empty when it reads none."""
    texts = _parsed_templates(template)
    names = [name for name in _EFFORTS if any(name in each.names for each in texts)]
    words = frozenset[str]().union(*(_words(texts, name) for name in names))
    if not names:
        return ()
    return tuple(word for word in _LEVELS if word in words) or _COMMON_LEVELS


def _parsed_templates(template: object) -> list[TemplateVariables]:
    texts = template.values() if isinstance(template, Mapping) else (template,)
    return [read_template(text) for text in texts if isinstance(text, str)]


def _switches(texts: Sequence[TemplateVariables], read: frozenset[str], thinking: bool) -> dict[str, object]:
    """Return the values of the switches and modes among the variables that a template reads."""
    switches: dict[str, object] = {name: thinking for name in SWITCHES if name in read}
    switches |= {name: not thinking for name in _INVERSE_SWITCHES if name in read}
    for name in _MODES:
        words = _words(texts, name)
        word = next((each for each in (_ON_WORDS if thinking else _OFF_WORDS) if each in words), None)
        if word is not None:
            switches[name] = word
    return switches


def _words(texts: Sequence[TemplateVariables], name: str) -> frozenset[str]:
    return frozenset[str]().union(
        *(each.words.get(name, frozenset()) | each.defaults.get(name, frozenset()) for each in texts)
    )


def _level(texts: Sequence[TemplateVariables], name: str, requested: RequestedSwitches) -> str | None:
    """Return a level variable's value nearest to the effort; empty to leave the variable out, None without levels."""
    effort = requested.effort.value if requested.effort is not None else "none" if requested.thinking is False else None
    if effort is None or not any(name in each.names for each in texts):
        return None
    compared = {word for each in texts for word in each.words.get(name, ()) if word in _LEVELS}
    default = {word for each in texts for word in each.defaults.get(name, ()) if word in _LEVELS}
    if requested.effort is None and compared.isdisjoint({"none", "minimal"}):
        return None  # no level switches reasoning off
    values = {word: word for word in (compared | default if compared else {*_COMMON_LEVELS, *default})}
    if compared and not default:
        values.setdefault("medium", "")
    index = _LEVELS.index(effort)
    return values[min(values, key=lambda word: (abs(_LEVELS.index(word) - index), _LEVELS.index(word)))]


@functools.lru_cache(maxsize=16)
def read_template(text: str) -> TemplateVariables:
    """Parse a template and return its variables; nothing is rendered."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols", GenerationTag])
    try:
        tree = environment.parse(text)
        words, defaults = _compared(tree), _defaults(tree)
        names = frozenset(find_undeclared_variables(tree))  # last: it folds the lists in the tree into constants
    except (TemplateSyntaxError, RecursionError):
        return TemplateVariables()
    return TemplateVariables(
        names,
        {name: frozenset(each) for name, each in words.items()},
        {name: frozenset(each) for name, each in defaults.items()},
    )


def _compared(tree: nodes.Template) -> dict[str, set[str]]:
    """Return the strings that a template compares each variable with."""
    words: dict[str, set[str]] = {}
    for compare in tree.find_all(nodes.Compare):
        sides = [compare.expr, *(operand.expr for operand in compare.ops)]
        names = [each.name for side in sides if (each := _name(side)) is not None]
        for name in names:
            words.setdefault(name, set()).update(word for side in sides for word in _texts(side))
    return words


def _defaults(tree: nodes.Template) -> dict[str, set[str]]:
    """Return the default strings of each variable: of conditional expressions, ``default`` filters and assignments."""
    defaults: dict[str, set[str]] = {}
    for choice in tree.find_all(nodes.CondExpr):
        variable = _name(choice.expr1)
        if variable is not None and choice.expr2 is not None:
            defaults.setdefault(variable.name, set()).update(_texts(choice.expr2))
    for filtered in tree.find_all(nodes.Filter):
        variable = _name(filtered.node) if filtered.name in {"default", "d"} and filtered.node is not None else None
        if variable is not None:
            defaults.setdefault(variable.name, set()).update(word for each in filtered.args for word in _texts(each))
    for assigned in tree.find_all(nodes.Assign):
        if isinstance(assigned.target, nodes.Name):
            defaults.setdefault(assigned.target.name, set()).update(_texts(assigned.node))
    return defaults


def _name(node: nodes.Node) -> nodes.Name | None:
    """Return the variable that an expression consists of, possibly below filters such as ``lower``; None for others."""
    while isinstance(node, nodes.Filter) and node.node is not None and node.name in {"lower", "trim", "string"}:
        node = node.node
    return node if isinstance(node, nodes.Name) else None


def _texts(node: nodes.Node) -> Iterator[str]:
    if isinstance(node, nodes.Const) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, (nodes.List, nodes.Tuple)):
        for each in node.items:
            yield from _texts(each)
