"""Parsing of one line of training data, and its faults.

A line is a JSON object of one kind: a conversation, a prompt with its completion, a better and a worse answer to one
question, or text.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from mlxk.domain.generation.conversation import Conversation, Message, Role, ToolCall
from mlxk.domain.text import is_valid_unicode
from mlxk.domain.tuning.examples import Example, ExampleKind, ExamplePart, NamedImage

MAX_LINE_BYTES = 16 * 1024 * 1024
"""Longest line; no context window holds more text."""


class ExampleFault(Exception):  # noqa: N818 - it is no error of the program
    """The fault of a line, as the end of a sentence about it that begins with the field at fault."""


_FIELDS = {
    ExampleKind.CHAT: ("messages",),
    ExampleKind.COMPLETION: ("prompt", "completion"),
    ExampleKind.TEXT: ("text",),
}
_PAIR = ("chosen", "rejected")
_IMAGES = ("image", "images")
_COMMON_FIELDS = frozenset({"tools", *_IMAGES})
"""Fields of every kind but text."""
_TEXT_PARTS = frozenset({"text", "input_text"})
_IMAGE_PARTS = frozenset({"image", "image_url", "input_image"})
_IMAGE_FIELDS = ("image", "path", "url", "image_url")
_ROLES = {"developer": Role.SYSTEM, **{role.value: role for role in Role}}


def read_example(line: bytes, number: int) -> Example:
    """Parse a line.

    Args:
        line: Its bytes, without a byte order mark.
        number: Line number, from 1.

    Raises:
        ExampleFault: The line is not a valid example.
    """
    document = _parsed(line)
    if any(field in document for field in _PAIR):
        return _pair(document, number)
    present = [kind for kind, fields in _FIELDS.items() if any(field in document for field in fields)]
    if not present:
        named = ", ".join(sorted(document)[:5]) or "none"
        raise ExampleFault(f"has no messages, no prompt with a completion, and no text (its fields: {named})")
    if len(present) > 1:
        raise ExampleFault(f"has {' and '.join(kind.value for kind in present)}: of which kind it is, is not clear")
    (kind,) = present
    unknown = tuple(sorted(document.keys() - set(_FIELDS[kind]) - _COMMON_FIELDS))
    if kind is ExampleKind.TEXT:
        if any(field in document for field in _IMAGES):
            raise ExampleFault("image: stands beside text; images are shown in messages, or beside a prompt")
        return Example(kind, number, text=_text(document, "text"), unknown=unknown)
    tools = _tools(document.get("tools"))
    learned: tuple[int, ...] = (1,)
    parts: list[tuple[ExamplePart, ...]] = [(), ()]
    if kind is ExampleKind.COMPLETION:
        messages = _completion(document, "completion")
    else:
        messages, learned = _messages(document["messages"])
        parts = [_message_parts(each, f"messages[{index}]") for index, each in enumerate(document["messages"])]
    with_images = _with_images(parts, messages, _images(document))
    return Example(kind, number, Conversation(messages, tools), learned, parts=with_images, unknown=unknown)


def _completion(document: Mapping[str, Any], answer: str) -> tuple[Message, ...]:
    for field, other in (("prompt", answer), (answer, "prompt")):
        if field not in document:
            raise ExampleFault(f"{field}: is missing beside {other}")
    question = Message(Role.USER, _text(document, "prompt"))
    return question, Message(Role.ASSISTANT, _text(document, answer))


def _pair(document: dict[str, Any], number: int) -> Example:
    """Return the example of a better and a worse answer, each given as text or as messages that end with it."""
    for field, other in zip(_PAIR, reversed(_PAIR), strict=True):
        if field not in document:
            raise ExampleFault(f"{field}: is missing beside {other}")
    if any(field in document for field in ("messages", "completion", "text")):
        raise ExampleFault("chosen, rejected: stand beside another answer: of which kind it is, is not clear")
    tools = _tools(document.get("tools"))
    better, worse = (_answered(document, field) for field in _PAIR)
    if better[:-1] != worse[:-1]:
        raise ExampleFault("rejected: answers another question than chosen")
    if better[-1] == worse[-1]:
        raise ExampleFault("rejected: is the same as chosen")
    if worse[-1].tool_calls or worse[-1].reasoning:
        raise ExampleFault("rejected: calls a tool or reasons; only texts are compared")
    parts = _with_images([() for _ in better], better, _images(document))
    unknown = tuple(sorted(document.keys() - {"prompt", *_PAIR} - _COMMON_FIELDS))
    conversation, learned = Conversation(better, tools), (len(better) - 1,)
    rejected = worse[-1].content
    return Example(ExampleKind.PAIR, number, conversation, learned, parts=parts, rejected=rejected, unknown=unknown)


def _answered(document: Mapping[str, Any], field: str) -> tuple[Message, ...]:
    """Return the messages that end with one of the answers of a pair."""
    value, prompt = document[field], document.get("prompt")
    if isinstance(value, str):
        question = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        if prompt is None:
            raise ExampleFault(f"prompt: is missing beside {field}")
        if not isinstance(prompt, list):
            _text(document, "prompt")
        return _messages([*question, {"role": "assistant", "content": _text(document, field)}])[0]
    if not isinstance(value, list):
        raise ExampleFault(f"{field}: is {_kind_of(value)}, neither a text nor messages")
    before = prompt if isinstance(prompt, list) else [] if prompt is None else [{"role": "user", "content": prompt}]
    if before and value[: len(before)] == before:
        before = []
    try:
        return _messages([*before, *value])[0]
    except ExampleFault as fault:
        raise ExampleFault(f"{field}: {fault}") from fault


def _images(document: Mapping[str, Any]) -> list[NamedImage]:
    """Return the images of the fields beside the messages or the prompt."""
    images = []
    for field in _IMAGES:
        value = document.get(field)
        values = value if isinstance(value, list) else [] if value is None else [value]
        for index, item in enumerate(values):
            place = f"{field}[{index}]" if isinstance(value, list) else field
            images.append(_named_image(item.get("path", item.get("url")) if isinstance(item, dict) else item, place))
    return images


def _named_image(value: object, place: str) -> NamedImage:
    """Return the image of a path or ``data:`` URL."""
    if not isinstance(value, str):
        raise ExampleFault(f"{place}: is {_kind_of(value)}, not the path of an image")
    if not value.strip() or "\0" in value or not is_valid_unicode(value):
        raise ExampleFault(f"{place}: is not the path of an image")
    if value[:8].lower().startswith(("http://", "https://")):
        raise ExampleFault(f"{place}: is an address, and the network is not used; name a file")
    return NamedImage(value.removeprefix("file://"), place)


_PLACEHOLDER = NamedImage("")
"""Placeholder in a message for an image of the field ``image`` or ``images``."""


def _message_parts(message: Mapping[str, Any], place: str) -> tuple[ExamplePart, ...]:
    """Return text and images of a message with images; empty for a message without any."""
    content = message.get("content")
    if not isinstance(content, list):
        return ()
    parts: list[ExamplePart] = []
    for index, part in enumerate(content):
        kind = part["type"]
        if kind in _TEXT_PARTS:
            parts += [part["text"]] if part.get("text") else []
            continue
        where = f"{place}.content[{index}]"
        field = "image_url" if kind != "image" else next((name for name in _IMAGE_FIELDS if name in part), None)
        if field is None:
            parts.append(_PLACEHOLDER)
            continue
        value = part.get(field)
        parts.append(_named_image(value.get("url") if isinstance(value, dict) else value, f"{where}.{field}"))
    if not any(isinstance(part, NamedImage) for part in parts):
        return ()
    if _ROLES[message["role"]] is not Role.USER:
        raise ExampleFault(f"{place}.content: only the user shows images")
    return tuple(parts)


def _with_images(
    parts: list[tuple[ExamplePart, ...]], messages: tuple[Message, ...], images: list[NamedImage]
) -> tuple[tuple[ExamplePart, ...], ...]:
    """Put the images beside the messages at the placeholders, or without any before the first message of the user."""
    placeholders = sum(part is _PLACEHOLDER for message in parts for part in message)
    if placeholders:
        if placeholders != len(images):
            raise ExampleFault(f"images: there are {len(images)}, and {placeholders} in messages that name no file")
        rest = iter(images)
        parts = [tuple(next(rest) if part is _PLACEHOLDER else part for part in message) for message in parts]
    elif images:
        first = next(index for index, message in enumerate(messages) if message.role is Role.USER)
        parts[first] = (*images, *(parts[first] or (messages[first].content,)))
    return tuple(parts) if any(parts) else ()


def _parsed(line: bytes) -> dict[str, Any]:
    """Return the JSON object of a line."""
    try:
        text = line.rstrip().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ExampleFault(f"is not UTF-8 (byte {error.start + 1} of the line)") from error
    try:
        document = json.loads(text, object_pairs_hook=_unique_fields, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ExampleFault(_syntax_fault(text, error)) from error
    except RecursionError as error:
        raise ExampleFault("is nested too deeply") from error
    except ValueError as error:
        raise ExampleFault("has a number that is too long") from error
    if not isinstance(document, dict):
        raise ExampleFault(f"is {_kind_of(document)}, not an object")
    return document


def _unique_fields(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ExampleFault(f"{name}: stands twice in one object")
        fields[name] = value
    return fields


def _refuse_constant(text: str) -> float:
    raise ExampleFault(f"is not JSON: {text} is no number of JSON")


def _syntax_fault(text: str, error: json.JSONDecodeError) -> str:
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
    """Return the text in a field; refuse a blank or invalid one."""
    value, name = document[field], f"{place}{field}"
    if not isinstance(value, str):
        raise ExampleFault(f"{name}: is {_kind_of(value)}, not a text")
    return _checked_text(value, name)


def _checked_text(value: str, name: str) -> str:
    if not value.strip():
        raise ExampleFault(f"{name}: is empty")
    _require_unicode(value, name)
    if "\0" in value:
        raise ExampleFault(f"{name}: holds a NUL character")
    return value


def _require_unicode(value: str, name: str) -> None:
    if not is_valid_unicode(value):
        raise ExampleFault(f"{name}: holds half a surrogate pair, which is no character")


def _tools(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ExampleFault(f"tools: is {_kind_of(value)}, not a list")
    for index, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise ExampleFault(f"tools[{index}]: is no function with a name")
    tools = tuple(json.dumps(tool, ensure_ascii=False) for tool in value)
    for index, text in enumerate(tools):
        _require_unicode(text, f"tools[{index}]")
    return tools


def _messages(value: object) -> tuple[tuple[Message, ...], tuple[int, ...]]:
    """Return the messages, and the indices of the answers to learn."""
    if not isinstance(value, list):
        raise ExampleFault(f"messages: is {_kind_of(value)}, not a list")
    if not value:
        raise ExampleFault("messages: is empty")
    messages: list[Message] = []
    learned = []
    for index, item in enumerate(value):
        place = f"messages[{index}]"
        if not isinstance(item, dict):
            raise ExampleFault(f"{place}: is {_kind_of(item)}, not an object")
        message = _message(item, place)
        _require_turn(messages, message, place)
        messages.append(message)
        if message.role is Role.ASSISTANT and _weight(item, place):
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
    _require_unicode(reasoning or "", f"{place}.reasoning_content")
    call_id = value.get("tool_call_id")
    if call_id is not None and not isinstance(call_id, str):
        raise ExampleFault(f"{place}.tool_call_id: is {_kind_of(call_id)}, not a text")
    _require_unicode(call_id or "", f"{place}.tool_call_id")
    return Message(role, content, calls, call_id, reasoning=reasoning or "")


def _content(value: Mapping[str, Any], place: str, *, optional: bool) -> str:
    content = value.get("content")
    if content is None or content == "":
        if optional:
            return ""
        raise ExampleFault(f"{place}.content: is {'empty' if 'content' in value else 'missing'}")
    if isinstance(content, list):
        texts = []
        for index, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            if not isinstance(kind, str) or kind not in _TEXT_PARTS | _IMAGE_PARTS:
                raise ExampleFault(f"{place}.content[{index}]: is neither text nor an image")
            is_text = kind in _TEXT_PARTS and "text" in part
            texts.append(_text(part, "text", f"{place}.content[{index}].") if is_text else "")
        if any(part["type"] in _IMAGE_PARTS for part in content):
            return "\n".join(filter(None, texts))
        return _checked_text("".join(texts), f"{place}.content")
    return _text(value, "content", f"{place}.")


def _calls(value: object, role: Role, place: str) -> tuple[ToolCall, ...]:
    if value is None or value == []:
        return ()
    if role is not Role.ASSISTANT:
        raise ExampleFault(f"{place}.tool_calls: only the assistant calls tools")
    if not isinstance(value, list):
        raise ExampleFault(f"{place}.tool_calls: is {_kind_of(value)}, not a list")
    return tuple(_call(item, f"{place}.tool_calls[{index}]") for index, item in enumerate(value))


def _call(value: object, place: str) -> ToolCall:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(function, dict):
        raise ExampleFault(f"{place}: has no function")
    name, arguments = function.get("name"), function.get("arguments", {})
    if not isinstance(name, str) or not name:
        raise ExampleFault(f"{place}.function.name: is missing or no text")
    try:
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise ExampleFault(f"{place}.function.arguments: are not JSON") from error
    if not isinstance(arguments, dict):
        raise ExampleFault(f"{place}.function.arguments: are {_kind_of(arguments)}, not an object")
    call_id = value.get("id")
    call = ToolCall(name, text, call_id if isinstance(call_id, str) else "")
    _require_unicode(f"{call.name}{call.arguments}{call.id}", f"{place}.function")
    return call


def _weight(value: Mapping[str, Any], place: str) -> bool:
    weight = value.get("weight", 1)
    if weight not in (0, 1) or isinstance(weight, bool):
        raise ExampleFault(f"{place}.weight: is neither 0 nor 1")
    return bool(weight)


def _require_turn(before: list[Message], message: Message, place: str) -> None:
    """Refuse a message that cannot follow the messages before it."""
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
    calls = next((earlier.tool_calls for earlier in reversed(before) if earlier.role is not Role.TOOL), ())
    if role is Role.TOOL:
        known = {call.id for call in calls} - {""}
        if not calls or (message.tool_call_id is not None and known and message.tool_call_id not in known):
            raise ExampleFault(f"{place}.role: a result of a tool follows no call that it belongs to")
    elif calls and last is not None and last.role is Role.ASSISTANT:
        raise ExampleFault(f"{place}.role: a call of a tool has no result before it")
