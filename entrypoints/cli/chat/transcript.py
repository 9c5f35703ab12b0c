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
"""Characters by which a message is named."""

_ROLE_LETTERS = {Role.USER: "U", Role.ASSISTANT: "A", Role.TOOL: "T"}


@attrs.frozen
class SavedChat:
    """A saved conversation."""

    model: str
    system: str | None
    messages: tuple[Message, ...]
    """Turns."""
    earlier: tuple[Message, ...] = ()
    """Turns before these, which the model does not get any more."""
    summary: str = ""
    """What the model gets in place of them; may be empty."""


def first_words(messages: Sequence[Message]) -> str:
    """Return the beginning of the first message, in quotes and on one line; empty where there is none."""
    if not messages:
        return ""
    words = " ".join(messages[0].content.split())
    return f"'{words}'" if len(words) <= FIRST_WORDS else f"'{words[: FIRST_WORDS - 1]}…'"


def save(path: str, transcript: SavedChat, *, replace: bool = True) -> None:
    """Write a transcript, replacing a file only when the new one is complete.

    A file that is replaced keeps its mode, and a link to it stays a link; a new file is the user's alone.

    Raises:
        FileExistsError: The file exists, and is not to be replaced.
        StorageError: The file cannot be written, or something that is no file has its name.
        ValidationError: The path cannot be one.
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
        os.stat(os.path.dirname(target))  # a folder that is missing is a mistake here, and not made
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
        ValidationError: It is not a transcript, or of a version that is not known here.
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
    """Return turns: a user message, calls with the results of tools, and an answer at the end."""
    messages = tuple(map(_read, written))
    letters = "".join(_ROLE_LETTERS.get(message.role, "-") for message in messages)
    if not re.fullmatch(r"(?:U(?:AT+)*A)*", letters):
        raise ValueError("messages")
    return messages


def _content(path: str) -> bytes:
    """Return the content of a file; a pipe is refused, since it might block."""
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
    """Return a message in OpenAI's format, with reasoning and tool calls only where there are any."""
    written: dict[str, object] = {"role": message.role.value, "content": message.content}
    if message.reasoning:
        written["reasoning_content"] = message.reasoning
    if message.tool_call_id is not None:
        written["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        written["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return written


def _read(written: Mapping[str, Any]) -> Message:
    functions = [(call["function"], call["id"]) for call in written.get("tool_calls", ())]
    calls = tuple(ToolCall(_text(each["name"]), _text(each["arguments"]), _text(name)) for each, name in functions)
    role = Role(written["role"])
    if calls and role is not Role.ASSISTANT:
        raise ValueError("tool_calls")
    answered = written.get("tool_call_id")
    return Message(
        role,
        _text(written["content"]),
        calls,
        tool_call_id=None if answered is None else _text(answered),
        reasoning=_text(written.get("reasoning_content", "")),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # JSON can express an unpaired surrogate, which is not valid Unicode.
    return value
