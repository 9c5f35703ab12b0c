"""Saved conversations: JSON files, replaced atomically."""

import contextlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from typing import Any

import attrs

from mlxk.domain.errors import StorageError, ValidationError
from mlxk.domain.generation.conversation import Message, Role, ToolCall

VERSION = 1
MAX_TRANSCRIPT_BYTES = 64 * 1024 * 1024
"""Largest file that is read, in bytes."""

_PRIVATE = 0o600


@attrs.frozen
class SavedChat:
    """A saved conversation."""

    model: str
    system: str | None
    messages: tuple[Message, ...]
    """User messages and their completions, in pairs."""


def save(path: str, transcript: SavedChat) -> None:
    """Write a transcript, replacing the file only when the new one is complete.

    A file that is replaced keeps its mode, and a link to it stays a link; a new file is the user's alone.

    Raises:
        StorageError: The file cannot be written, or something that is no file has its name.
        ValidationError: The path cannot be one.
    """
    document = {
        "version": VERSION,
        "model": transcript.model,
        "system": transcript.system,
        "messages": [_written(message) for message in transcript.messages],
    }
    content = json.dumps(document, indent=2, ensure_ascii=False).encode()
    try:
        target = os.path.realpath(os.path.expanduser(path))
        _replace(target, content, _mode(path, target))
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
        messages = tuple(_read(each) for each in document["messages"])
        if [each.role for each in messages] != [Role.USER, Role.ASSISTANT] * (len(messages) // 2):
            raise ValueError("messages")
        return SavedChat(_text(document["model"]), system, messages)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValidationError(f"'{path}' is not a transcript that /save wrote") from error


def _mode(path: str, target: str) -> int:
    """Return the mode of the file that is replaced, or that of a new file."""
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return _PRIVATE
    if not stat.S_ISREG(mode):
        raise StorageError(f"'{path}' cannot be written: there is something that is not a file")
    return stat.S_IMODE(mode)


def _replace(target: str, content: bytes, mode: int) -> None:
    """Write a temporary file, flush it to the disk, and rename it to its place."""
    descriptor, unfinished = tempfile.mkstemp(prefix=".mlxk-chat.", dir=os.path.dirname(target))
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        os.replace(unfinished, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)


def _content(path: str) -> bytes:
    """Return the content of a file; a pipe is refused, since it might block."""
    try:
        with open(os.path.expanduser(path), "rb", opener=_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise StorageError(f"'{path}' cannot be read: it is not a file")
            content = file.read(MAX_TRANSCRIPT_BYTES + 1)
    except OSError as error:
        raise StorageError(f"'{path}' cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValidationError(f"'{path}' cannot be the name of a file") from error
    if len(content) > MAX_TRANSCRIPT_BYTES:
        raise ValidationError(f"'{path}' is larger than any transcript")
    return content


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _written(message: Message) -> dict[str, object]:
    """Return a message in OpenAI's format, with reasoning and tool calls only where there are any."""
    written: dict[str, object] = {"role": message.role.value, "content": message.content}
    if message.reasoning:
        written["reasoning_content"] = message.reasoning
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
    return Message(role, _text(written["content"]), calls, reasoning=_text(written.get("reasoning_content", "")))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # JSON can express an unpaired surrogate, which is not valid Unicode.
    return value
