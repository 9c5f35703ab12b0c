"""Saved conversations: JSON files, replaced atomically."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from mlxk.domain.errors import StorageError, ValidationError
from mlxk.domain.generation.conversation import Message, Role, ToolCall
from mlxk.entrypoints import private_files

VERSION = 1
MAX_TRANSCRIPT_BYTES = 64 * 1024 * 1024
"""Largest file that is read, in bytes."""

FIRST_WORDS = 60
"""Characters of a message's beginning, in quotes, that name it."""

_ROLE_LETTERS = {Role.USER: "U", Role.ASSISTANT: "A", Role.TOOL: "T"}


@attrs.frozen
class SavedChat:
    """A saved conversation."""

    model: str
    system: str | None
    messages: tuple[Message, ...]
    """The turns in the model's context."""
    earlier: tuple[Message, ...] = ()
    """Older turns, which were dropped from the context."""
    summary: str = ""
    """A summary of ``earlier`` in the model's context; may be empty."""


def first_words(messages: Sequence[Message]) -> str:
    """Return the beginning of the first message, in quotes and on one line; empty without messages."""
    if not messages:
        return ""
    words = " ".join(messages[0].content.split())
    return f"'{words}'" if len(words) <= FIRST_WORDS else f"'{words[: FIRST_WORDS - 1]}…'"


def save(path: str, transcript: SavedChat, *, replace: bool = True) -> None:
    """Write a transcript atomically; see ``private_files.write``.

    Raises:
        FileExistsError: The file exists, and ``replace`` is false.
        StorageError: The file cannot be written, its folder does not exist, or the path is not one of a regular file.
        ValidationError: The path is invalid.
    """
    document: dict[str, object] = {
        "version": VERSION,
        "model": transcript.model,
        "system": transcript.system,
        "messages": [_written(message) for message in transcript.messages],
    }
    if transcript.earlier:
        document["earlier"] = [_written(message) for message in transcript.earlier]
    if transcript.summary:
        document["summary"] = transcript.summary
    content = json.dumps(document, indent=2, ensure_ascii=False).encode()
    try:
        target = os.path.realpath(os.path.expanduser(path))
        os.stat(os.path.dirname(target))  # private_files would create a missing folder
        private_files.write(target, content, replace=replace)
    except FileExistsError:
        raise
    except OSError as error:
        raise StorageError(f"'{path}' cannot be written: {error.strerror}") from error
    except ValueError as error:
        raise ValidationError(f"'{path}' cannot be the name of a file") from error


def load(path: str) -> SavedChat:
    """Read a transcript.

    Raises:
        StorageError: The file cannot be read.
        ValidationError: It is not a transcript, or of a newer version.
    """
    content = _content(path)
    try:
        document = json.loads(content)
        version = document["version"]
        if type(version) is int and version > VERSION:
            raise ValidationError(
                f"'{path}' is a transcript of version {version}; this mlxk reads version {VERSION}",
                hint="Load it with the mlxk that saved it, or a later one.",
            )
        if type(version) is not int or version != VERSION:
            raise ValueError("version")
        system = None if document["system"] is None else _text(document["system"])
        return SavedChat(
            _text(document["model"]),
            system,
            _conversation(document["messages"]),
            _conversation(document.get("earlier", ())),
            _text(document.get("summary", "")),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValidationError(f"'{path}' is not a transcript that /save wrote") from error


def _conversation(written: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Return messages that form whole turns: a user message, tool calls with their results, and a final answer.

    Raises:
        ValueError: They do not.
    """
    messages = tuple(map(_read, written))
    letters = "".join(_ROLE_LETTERS.get(message.role, "-") for message in messages)
    if not re.fullmatch(r"(?:U(?:AT+)*A)*", letters):
        raise ValueError("messages")
    return messages


def _content(path: str) -> bytes:
    """Return the content of a regular file; see ``private_files.read``."""
    try:
        content = private_files.read(os.path.expanduser(path), MAX_TRANSCRIPT_BYTES)
    except OSError as error:
        raise StorageError(f"'{path}' cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValidationError(f"'{path}' cannot be the name of a file") from error
    if content is None:
        raise StorageError(f"'{path}' cannot be read: there is no such file")
    if len(content) > MAX_TRANSCRIPT_BYTES:
        raise ValidationError(f"'{path}' is larger than any transcript")
    return content


def _written(message: Message) -> dict[str, object]:
    """Return a message in OpenAI's format, with reasoning and tool calls only if there are any."""
    fields: dict[str, object] = {"role": message.role.value, "content": message.content}
    if message.reasoning:
        fields["reasoning_content"] = message.reasoning
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        fields["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return fields


def _read(written: Mapping[str, Any]) -> Message:
    functions = [(call["function"], call["id"]) for call in written.get("tool_calls", ())]
    calls = tuple(ToolCall(_text(each["name"]), _text(each["arguments"]), _text(id_)) for each, id_ in functions)
    role = Role(written["role"])
    if calls and role is not Role.ASSISTANT:
        raise ValueError("tool_calls")
    call_id = written.get("tool_call_id")
    return Message(
        role,
        _text(written["content"]),
        calls,
        tool_call_id=None if call_id is None else _text(call_id),
        reasoning=_text(written.get("reasoning_content", "")),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # raises ValueError on an unpaired surrogate, which JSON can express
    return value
