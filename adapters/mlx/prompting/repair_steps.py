"""Ways to change a conversation so that a chat template accepts it; ``conversation_repair`` chooses among them."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import attrs

from mlxk.adapters.mlx.prompting.template_inputs import REASONING_KEYS, WireMessage, WirePrompt
from mlxk.domain.generation.conversation import Adaptation

SEPARATOR = "\n\n"
"""Separates joined texts."""

_ID_LENGTH = 9
_ALPHANUMERIC = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@attrs.frozen
class Step:
    """One way to change a conversation."""

    change: Callable[[WirePrompt], WirePrompt]
    adaptation: Adaptation | None = None
    """Reported to the client; None where only the form of a value changes, not its content."""
    form: str = ""
    """Name of the form; empty for steps with an adaptation."""


def short_id(identity: str) -> str:
    """Return an id of nine letters and digits for any id, always the same; an id of that form is returned as it is."""
    if len(identity) == _ID_LENGTH and identity.isalnum() and identity.isascii():
        return identity
    number = int.from_bytes(hashlib.sha256(identity.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    digits = []
    for _ in range(_ID_LENGTH):
        number, digit = divmod(number, len(_ALPHANUMERIC))
        digits.append(_ALPHANUMERIC[digit])
    return "".join(digits)


def _each(change: Callable[[WireMessage], WireMessage]) -> Callable[[WirePrompt], WirePrompt]:
    return lambda prompt: attrs.evolve(prompt, messages=tuple(change(message) for message in prompt.messages))


def _null_content(message: WireMessage) -> WireMessage:
    blank = message["role"] == "assistant" and message.get("tool_calls") and not message["content"]
    return {**message, "content": None} if blank else message


def _text_arguments(message: WireMessage) -> WireMessage:
    if not message.get("tool_calls"):
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": arguments_text(call)}} for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def arguments_text(call: Mapping[str, Any]) -> str:
    """Return the arguments of a call as JSON text."""
    arguments = call["function"]["arguments"]
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _wrapped_arguments(message: WireMessage) -> WireMessage:
    """Wrap arguments that are not a complete JSON object in an object."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        arguments = call["function"]["arguments"]
        wrapped = {"arguments": arguments} if isinstance(arguments, str) else arguments
        calls.append({**call, "function": {**call["function"], "arguments": wrapped}})
    return {**message, "tool_calls": calls}


def _short_ids(message: WireMessage) -> WireMessage:
    changed = dict(message)
    if message.get("tool_calls"):
        changed["tool_calls"] = [{**call, "id": short_id(call["id"])} for call in message["tool_calls"]]
    if "tool_call_id" in message:
        changed["tool_call_id"] = short_id(message["tool_call_id"])
    return changed


def _empty_lists(prompt: WirePrompt) -> WirePrompt:
    return attrs.evolve(prompt, has_empty_lists=True)


def _flat_tools(prompt: WirePrompt) -> WirePrompt:
    """Repeat the fields of each function beside it, as in the older form without the ``function`` object."""
    return attrs.evolve(prompt, tools=tuple({**tool["function"], **tool} for tool in prompt.tools))


def _complete_tools(prompt: WirePrompt) -> WirePrompt:
    """Add an empty description and empty parameters where a function lacks them."""
    return attrs.evolve(prompt, tools=tuple(_complete_tool(tool) for tool in prompt.tools))


def _complete_tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = {"description": "", **tool["function"]}
    function["parameters"] = {"type": "object", "properties": {}, **(function.get("parameters") or {})}
    return {**tool, "function": function}


def _typed_tools(prompt: WirePrompt) -> WirePrompt:
    """Add types and descriptions where the parameters of a function lack them."""
    changed = []
    for tool in prompt.tools:
        function = dict(tool["function"])
        if isinstance(function.get("parameters"), dict):
            function["parameters"] = _typed(function["parameters"])
        changed.append({**tool, "function": function})
    return attrs.evolve(prompt, tools=tuple(changed))


def _typed(schema: Mapping[str, Any]) -> dict[str, Any]:
    typed = {"type": "", **schema} | {"type": _one_type(schema.get("type", _inferred_type(schema)))}
    for name in ("properties", "$defs"):
        if isinstance(typed.get(name), dict):
            typed[name] = {
                key: {"description": "", **_typed(each)} if isinstance(each, dict) else each
                for key, each in typed[name].items()
            }
    if isinstance(typed.get("items"), dict):
        typed["items"] = _typed(typed["items"])
    return typed


def _inferred_type(schema: Mapping[str, Any]) -> str:
    if "properties" in schema:
        return "object"
    if "items" in schema:
        return "array"
    for name in ("anyOf", "oneOf", "allOf"):
        for each in schema[name] if isinstance(schema.get(name), list) else ():
            if isinstance(each, dict) and each.get("type") not in (None, "null"):
                return _one_type(each["type"])
    return "string"


def _one_type(stated: object) -> str:
    """Return the type as a single name: of a list the first but null; ``string`` where there is no name."""
    types = stated if isinstance(stated, list) else ()
    first = next((each for each in types if isinstance(each, str) and each != "null"), "string")
    return stated if isinstance(stated, str) else first


def _parts_of(content: Any) -> list[Any]:  # noqa: ANN401 - text, parts, or nothing
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content else []


def joined(contents: Sequence[Any]) -> Any:  # noqa: ANN401
    """Join several contents: into a text, or into parts where any content has parts."""
    if any(isinstance(content, list) for content in contents):
        *earlier, last = [parts for content in contents if (parts := _parts_of(content))] or [[]]
        return [part for parts in earlier for part in _separated(parts)] + last
    return SEPARATOR.join(content for content in contents if content)


def _separated(parts: list[Any]) -> list[Any]:
    """Append the separator to the last part if it is text."""
    *before, last = parts
    return [*before, {**last, "text": f"{last['text']}{SEPARATOR}"}] if last.get("type") == "text" else parts


def _leading_system_messages(messages: Sequence[WireMessage]) -> int:
    """Return the number of system messages at the front."""
    return next((index for index, each in enumerate(messages) if each["role"] != "system"), len(messages))


def _join_opening(prompt: WirePrompt) -> WirePrompt:
    count = _leading_system_messages(prompt.messages)
    if count < 2:
        return prompt
    first = {**prompt.messages[0], "content": joined([each["content"] for each in prompt.messages[:count]])}
    return attrs.evolve(prompt, messages=(first, *prompt.messages[count:]))


def _late_as_user(prompt: WirePrompt) -> WirePrompt:
    """Turn later system messages into user messages; after a tool's result, append them to that result.

    A user message there would look like a new question, before which many templates drop the reasoning.
    """
    count = _leading_system_messages(prompt.messages)
    messages = list(prompt.messages[:count])
    for each in prompt.messages[count:]:
        if each["role"] != "system":
            messages.append(each)
        elif messages and messages[-1]["role"] == "tool":
            result = messages.pop()
            messages.append({**result, "content": joined([result["content"], each["content"]])})
        else:
            messages.append({**each, "role": "user"})
    return attrs.evolve(prompt, messages=tuple(messages))


def _opening_as_user(prompt: WirePrompt) -> WirePrompt:
    """Prepend the leading system messages to the user message after them, or turn them into a user message."""
    count = _leading_system_messages(prompt.messages)
    if not count:
        return prompt
    opening, rest = prompt.messages[:count], prompt.messages[count:]
    contents = [each["content"] for each in opening]
    if rest and rest[0]["role"] == "user":
        merged = {**rest[0], "content": joined([*contents, rest[0]["content"]])}
        return attrs.evolve(prompt, messages=(merged, *rest[1:]))
    return attrs.evolve(prompt, messages=({"role": "user", "content": joined(contents)}, *rest))


def _open_with_user(prompt: WirePrompt) -> WirePrompt:
    """Insert an empty user message before an assistant message that opens the conversation."""
    count = _leading_system_messages(prompt.messages)
    if prompt.messages[count:] and prompt.messages[count]["role"] != "assistant":
        return prompt
    before, after = prompt.messages[:count], prompt.messages[count:]
    return attrs.evolve(prompt, messages=(*before, {"role": "user", "content": ""}, *after))


def _split_calls(prompt: WirePrompt) -> WirePrompt:
    """Turn several calls in one message into messages of one call, each followed by its result."""
    messages: list[WireMessage] = []
    pending = list(prompt.messages)
    while pending:
        message = pending.pop(0)
        calls = message.get("tool_calls", ())
        if len(calls) < 2:
            messages.append(message)
            continue
        count = next((index for index, each in enumerate(pending) if each["role"] != "tool"), len(pending))
        results, pending = pending[:count], pending[count:]
        for index, call in enumerate(calls):
            plain = {key: each for key, each in message.items() if key not in REASONING_KEYS}
            messages.append({**({**plain, "content": ""} if index else message), "tool_calls": [call]})
            own = [each for each in results if each.get("tool_call_id") == call["id"]]
            if not own and all("tool_call_id" not in each for each in results):
                own = results[:1]
            messages += own
            results = [each for each in results if not any(each is taken for taken in own)]
        messages += results
    return attrs.evolve(prompt, messages=tuple(messages))


def _join_turns(prompt: WirePrompt) -> WirePrompt:
    """Join consecutive messages of the user, and of the assistant unless they have tool calls."""
    messages: list[WireMessage] = []
    for role, group in groupby(prompt.messages, key=lambda each: (each["role"], bool(each.get("tool_calls")))):
        turns = list(group)
        if len(turns) < 2 or role not in {("user", False), ("assistant", False)}:
            messages += turns
        else:
            messages.append({**turns[0], **turns[-1], "content": joined([each["content"] for each in turns])})
    return attrs.evolve(prompt, messages=tuple(messages))


def _as_parts(message: WireMessage) -> WireMessage:
    return {**message, "content": _parts_of(message["content"])} if isinstance(message["content"], str) else message


def _as_text(message: WireMessage) -> WireMessage:
    parts = message["content"]
    if not isinstance(parts, list) or any(part.get("type") != "text" for part in parts):
        return message
    return {**message, "content": "\n".join(part["text"] for part in parts)}


def _calls_as_text(start: str = "", end: str = "") -> Callable[[WireMessage], WireMessage]:
    """Return a change that writes tool calls as JSON into the assistant's text, each between ``start`` and ``end``."""

    def change(message: WireMessage) -> WireMessage:
        if not message.get("tool_calls"):
            return message
        calls = [
            f'{start}{{"name": {json.dumps(call["function"]["name"])}, "arguments": {arguments_text(call)}}}{end}'
            for call in message["tool_calls"]
        ]
        others = {key: each for key, each in message.items() if key != "tool_calls"}
        return {**others, "content": joined([message["content"], "\n".join(calls)])}

    return change


def _results_as_user(message: WireMessage) -> WireMessage:
    if message["role"] != "tool":
        return message
    name = message.get("name")
    title = f"Result of {name}:" if name else "Result:"
    return {"role": "user", "content": joined([title, message["content"]])}


SHORT_IDS = Step(
    _each(_short_ids),
    Adaptation(
        "tool-call-ids", "Tool call ids were replaced: the model's chat template wants nine letters and digits."
    ),
)
"""For Mistral's templates."""

FORMS = (
    Step(_empty_lists, form="empty-lists"),
    Step(_flat_tools, form="flat-tools"),
    Step(_each(_null_content), form="null-content"),
    Step(
        _each(_wrapped_arguments),
        Adaptation(
            "incomplete-arguments", "Incomplete arguments of a tool call were given as an object with their text."
        ),
    ),
    Step(_each(_text_arguments), form="text-arguments"),
    Step(_each(_as_parts), form="content-parts"),
    Step(_each(_as_text), form="content-text"),
)
"""Other forms of the same content, most of them without visible effect; tried first, alone and in pairs."""

JOIN_TURNS = Step(
    _join_turns,
    Adaptation("turns-joined", "Messages of the same role that follow one another were joined."),
)

REPAIRS = (
    SHORT_IDS,
    Step(
        _complete_tools,
        Adaptation("tool-definitions", "Tools without description or parameters were given empty ones."),
    ),
    Step(
        _typed_tools,
        Adaptation("tool-parameter-types", "Parameters of tools without a single type were given one."),
    ),
    Step(_join_opening, Adaptation("system-messages-joined", "The system messages at the front were joined.")),
    Step(
        _late_as_user,
        Adaptation(
            "late-system-as-user",
            "System messages after the first turn were placed as user messages, or in the tool's result before them.",
        ),
    ),
    Step(
        _opening_as_user,
        Adaptation("system-in-user-message", "The system prompt was put into the user message after it."),
    ),
    Step(
        _open_with_user,
        Adaptation("user-message-inserted", "An empty user message was put before the assistant's first one."),
    ),
    Step(
        _split_calls,
        Adaptation("tool-calls-split", "Several tool calls of one message were given one after the other."),
    ),
    JOIN_TURNS,
)
"""In the order in which they are tried: small changes first."""

CALLS_AS_TEXT = Adaptation("tool-calls-as-text", "Earlier tool calls were written as text.")

TAG = "<tool_call>"

TAGGED_CALLS = Step(_each(_calls_as_text(f"{TAG}\n", "\n</tool_call>")), CALLS_AS_TEXT)
"""For models that write calls between these tags, but whose templates do not write the calls of earlier messages."""

LAST_RESORTS = (
    TAGGED_CALLS,
    Step(_each(_calls_as_text()), CALLS_AS_TEXT),
    Step(
        _each(_results_as_user),
        Adaptation("tool-results-as-user", "Results of tools were placed as user messages."),
    ),
    Step(_join_turns, JOIN_TURNS.adaptation),
)
"""For templates without support for tools."""

GENERIC_TOOLS = Adaptation(
    "tools-in-system-prompt", "The model's chat template does not read tools: they were described in the system prompt."
)

_TOOLS_INTRODUCTION = """You can call functions. These are available, each described by a JSON object:
{definitions}

To call one, reply with a JSON object between tags, and with nothing after it:
<tool_call>
{{"name": "the function's name", "arguments": {{"the parameter's name": "its value"}}}}
</tool_call>

For several calls, write several such blocks. The results are given to you in the next message. If no function helps,
reply as usual."""


def describe_tools(prompt: WirePrompt) -> WirePrompt:
    """Put the tools into the system prompt, for a template that does not read them."""
    definitions = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in prompt.tools)
    text = _TOOLS_INTRODUCTION.format(definitions=definitions)
    count = _leading_system_messages(prompt.messages)
    contents = [each["content"] for each in prompt.messages[:count]]
    opening = {"role": "system", "content": joined([*contents, text])}
    return attrs.evolve(prompt, messages=(opening, *prompt.messages[count:]), tools=())
