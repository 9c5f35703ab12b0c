"""One line of training data: what it may hold, and the fault of one that holds something else.

A line is a JSON object of one kind: a conversation, a prompt with its completion, or text. How it becomes tokens is the
trainer's work.
"""

import enum
import json
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from mlxk.domain.generation.conversation import Conversation, Message, Role, ToolCall
from mlxk.domain.text import is_valid_unicode

MAX_LINE_BYTES = 16 * 1024 * 1024
"""Bytes of a line; no context window holds more text."""


class ExampleKind(enum.Enum):
    """What a line holds; values are the names of its fields."""

    CHAT = "messages"
    COMPLETION = "prompt and completion"
    TEXT = "text"


class ExampleFault(Exception):  # noqa: N818 - it is no error of the program
    """What is wrong with a line, as a sentence that begins with the field."""


@attrs.frozen
class Example:
    """A line of training data."""

    kind: ExampleKind
    line: int
    """Its number in the file, from 1."""
    conversation: Conversation = attrs.field(factory=lambda: Conversation(()))
    """The messages, a prompt and its completion included; empty for text."""
    learned: tuple[int, ...] = ()
    """The indices of the answers that are to be learned."""
    text: str = ""
    """Of an example of text."""
    unknown: tuple[str, ...] = ()
    """Fields that mean nothing here."""

    @property
    def asked(self) -> Conversation:
        """The conversation up to the last answer."""
        return attrs.evolve(self.conversation, messages=self.conversation.messages[:-1])

    @property
    def answer(self) -> str:
        """The last answer; empty for text."""
        return self.conversation.messages[-1].content if self.conversation.messages else ""

    @property
    def content(self) -> tuple[object, ...]:
        """What it teaches, whatever its line and its order of fields."""
        return self.conversation, self.text


_FIELDS = {
    ExampleKind.CHAT: ("messages",),
    ExampleKind.COMPLETION: ("prompt", "completion"),
    ExampleKind.TEXT: ("text",),
}
_PREFERENCES = ("chosen", "rejected")
_IMAGES = ("image", "images")
_WITH_ANSWERS = frozenset({"tools"})
_PARTS = frozenset({"text", "input_text"})
_ROLES = {"developer": Role.SYSTEM, **{role.value: role for role in Role}}


def read_example(line: bytes, number: int) -> Example:
    """Return what a line holds.

    Args:
        line: Its bytes, without a byte order mark.
        number: Of the line, from 1.

    Raises:
        ExampleFault: It is no example.
    """
    document = _object(line)
    present = [kind for kind, fields in _FIELDS.items() if any(field in document for field in fields)]
    if any(field in document for field in _PREFERENCES):
        raise ExampleFault("chosen, rejected: pairs of preferences are not trained; write the chosen answer alone")
    if any(field in document for field in _IMAGES):
        raise ExampleFault("image: examples with images are not trained; models that read images are not tuned")
    if not present:
        named = ", ".join(sorted(document)[:5]) or "none"
        raise ExampleFault(f"has no messages, no prompt with a completion, and no text (its fields: {named})")
    if len(present) > 1:
        raise ExampleFault(f"has {' and '.join(kind.value for kind in present)}: of which kind it is, is not clear")
    (kind,) = present
    unknown = tuple(sorted(document.keys() - set(_FIELDS[kind]) - _WITH_ANSWERS))
    if kind is ExampleKind.TEXT:
        return Example(kind, number, text=_text(document, "text"), unknown=unknown)
    tools = _tools(document.get("tools"))
    if kind is ExampleKind.COMPLETION:
        for field, other in (("prompt", "completion"), ("completion", "prompt")):
            if field not in document:
                raise ExampleFault(f"{field}: is missing beside {other}")
        asked = Message(Role.USER, _text(document, "prompt"))
        answer = Message(Role.ASSISTANT, _text(document, "completion"))
        return Example(kind, number, Conversation((asked, answer), tools), (1,), unknown=unknown)
    messages, learned = _messages(document["messages"])
    return Example(kind, number, Conversation(messages, tools), learned, unknown=unknown)


def _object(line: bytes) -> dict[str, Any]:
    try:
        text = line.rstrip().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ExampleFault(f"is not UTF-8 (byte {error.start + 1} of the line)") from error
    try:
        document = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise ExampleFault(_syntax(text, error)) from error
    except RecursionError as error:
        raise ExampleFault("is nested too deeply") from error
    except ValueError as error:
        raise ExampleFault("has a number that is too long") from error
    if not isinstance(document, dict):
        raise ExampleFault(f"is {_kind_of(document)}, not an object")
    return document


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ExampleFault(f"{name}: stands twice in one object")
        found[name] = value
    return found


def _no_number(text: str) -> float:
    raise ExampleFault(f"is not JSON: {text} is no number of JSON")


def _syntax(text: str, error: json.JSONDecodeError) -> str:
    if error.msg == "Extra data":
        if "\r" in text:
            return "holds several lines that end in carriage returns alone; save the file with line feeds"
        return f"has more than one JSON value (column {error.colno})"
    return f"is not JSON: {error.msg[0].lower()}{error.msg[1:]} (column {error.colno})"


def _kind_of(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    names = {list: "a list", str: "a text", int: "a number", float: "a number", type(None): "null", dict: "an object"}
    return names[type(value)]


def _text(document: Mapping[str, Any], field: str, place: str = "") -> str:
    """Return the text in a field, which is not blank."""
    value, name = document[field], f"{place}{field}"
    if not isinstance(value, str):
        raise ExampleFault(f"{name}: is {_kind_of(value)}, not a text")
    return _sound(value, name)


def _sound(value: str, name: str) -> str:
    if not value.strip():
        raise ExampleFault(f"{name}: is empty")
    if not is_valid_unicode(value):
        raise ExampleFault(f"{name}: holds half a surrogate pair, which is no character")
    if "\0" in value:
        raise ExampleFault(f"{name}: holds a NUL character")
    return value


def _tools(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ExampleFault(f"tools: is {_kind_of(value)}, not a list")
    for index, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise ExampleFault(f"tools[{index}]: is no function with a name")
    return tuple(json.dumps(tool, ensure_ascii=False) for tool in value)


def _messages(value: object) -> tuple[tuple[Message, ...], tuple[int, ...]]:
    """Return the messages, and the indices of the answers to learn."""
    if not isinstance(value, list):
        raise ExampleFault(f"messages: is {_kind_of(value)}, not a list")
    if not value:
        raise ExampleFault("messages: is empty")
    messages: list[Message] = []
    learned = []
    for index, each in enumerate(value):
        place = f"messages[{index}]"
        if not isinstance(each, dict):
            raise ExampleFault(f"{place}: is {_kind_of(each)}, not an object")
        message = _message(each, place)
        _require_turn(messages, message, place)
        messages.append(message)
        if message.role is Role.ASSISTANT and _weight(each, place):
            learned.append(index)
    if messages[-1].role is not Role.ASSISTANT:
        raise ExampleFault(
            f"messages[{len(messages) - 1}]: the last message is not the assistant's: there is no answer"
        )
    if not learned:
        raise ExampleFault("messages: every answer has the weight 0, so that nothing is learned")
    return tuple(messages), tuple(learned)


def _message(value: Mapping[str, Any], place: str) -> Message:
    if "role" not in value:
        raise ExampleFault(f"{place}.role: is missing")
    role = _ROLES.get(value["role"]) if isinstance(value["role"], str) else None
    if role is None:
        raise ExampleFault(f"{place}.role: is none of system, user, assistant and tool")
    calls = _calls(value.get("tool_calls"), role, place)
    content = _content(value, place, optional=bool(calls))
    reasoning = value.get("reasoning_content")
    if reasoning is not None and not isinstance(reasoning, str):
        raise ExampleFault(f"{place}.reasoning_content: is {_kind_of(reasoning)}, not a text")
    identity = value.get("tool_call_id")
    if identity is not None and not isinstance(identity, str):
        raise ExampleFault(f"{place}.tool_call_id: is {_kind_of(identity)}, not a text")
    return Message(role, content, calls, identity, reasoning=reasoning or "")


def _content(value: Mapping[str, Any], place: str, *, optional: bool) -> str:
    content = value.get("content")
    if content is None or content == "":
        if optional:
            return ""
        raise ExampleFault(f"{place}.content: is {'empty' if 'content' in value else 'missing'}")
    if isinstance(content, list):
        texts = []
        for index, part in enumerate(content):
            if not isinstance(part, dict) or part.get("type") not in _PARTS:
                raise ExampleFault(f"{place}.content[{index}]: is no text; only text is trained")
            texts.append(_text(part, "text", f"{place}.content[{index}].") if "text" in part else "")
        return _sound("".join(texts), f"{place}.content")
    return _text(value, "content", f"{place}.")


def _calls(value: object, role: Role, place: str) -> tuple[ToolCall, ...]:
    if value is None or value == []:
        return ()
    if role is not Role.ASSISTANT:
        raise ExampleFault(f"{place}.tool_calls: only the assistant calls tools")
    if not isinstance(value, list):
        raise ExampleFault(f"{place}.tool_calls: is {_kind_of(value)}, not a list")
    return tuple(_call(each, f"{place}.tool_calls[{index}]") for index, each in enumerate(value))


def _call(value: object, place: str) -> ToolCall:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(function, dict):
        raise ExampleFault(f"{place}: has no function")
    name, arguments = function.get("name"), function.get("arguments", {})
    if not isinstance(name, str) or not name:
        raise ExampleFault(f"{place}.function.name: is missing or no text")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise ExampleFault(f"{place}.function.arguments: are not JSON") from error
    if not isinstance(arguments, dict):
        raise ExampleFault(f"{place}.function.arguments: are {_kind_of(arguments)}, not an object")
    identity = value.get("id")
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False), identity if isinstance(identity, str) else "")


def _weight(value: Mapping[str, Any], place: str) -> bool:
    weight = value.get("weight", 1)
    if weight not in (0, 1) or isinstance(weight, bool):
        raise ExampleFault(f"{place}.weight: is neither 0 nor 1")
    return bool(weight)


def _require_turn(before: list[Message], message: Message, place: str) -> None:
    """Refuse a message that cannot follow those before it."""
    last = before[-1] if before else None
    role = message.role
    if role is Role.SYSTEM and last is not None:
        raise ExampleFault(f"{place}.role: a system message stands first or not at all")
    if role is Role.USER and last is not None and last.role is Role.USER:
        raise ExampleFault(f"{place}.role: two messages of the user follow one another")
    if role is Role.ASSISTANT:
        if last is None or last.role is Role.SYSTEM:
            raise ExampleFault(f"{place}.role: the assistant answers before the user has said anything")
        if last.role is Role.ASSISTANT:
            raise ExampleFault(f"{place}.role: two messages of the assistant follow one another")
    calls = next((each.tool_calls for each in reversed(before) if each.role is not Role.TOOL), ())
    if role is Role.TOOL:
        known = {call.id for call in calls} - {""}
        if not calls or (message.tool_call_id is not None and known and message.tool_call_id not in known):
            raise ExampleFault(f"{place}.role: a result of a tool follows no call that it belongs to")
    elif calls and last is not None and last.role is Role.ASSISTANT:
        raise ExampleFault(f"{place}.role: a call of a tool has no result before it")
