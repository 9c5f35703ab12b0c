"""Conversations as files: JSON, written whole or not at all."""

import json
import os

import attrs

from mlxk.domain.conversation import Message, Role
from mlxk.domain.errors import StorageError, ValidationError

VERSION = 1
MAX_TRANSCRIPT_BYTES = 64 * 1024 * 1024
"""Larger files are not read; no chat comes near."""


@attrs.frozen
class Transcript:
    """A conversation worth keeping."""

    model: str
    system: str | None
    messages: tuple[Message, ...]


def save(path: str, transcript: Transcript) -> None:
    """Write a transcript, replacing the file only when the new one is complete.

    Raises:
        StorageError: The file cannot be written.
    """
    document = {
        "version": VERSION,
        "model": transcript.model,
        "system": transcript.system,
        "messages": [{"role": each.role.value, "content": each.content} for each in transcript.messages],
    }
    target = os.path.expanduser(path)
    unfinished = f"{target}.{os.getpid()}.tmp"
    try:
        with open(unfinished, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=2, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, target)
    except OSError as error:
        if os.path.exists(unfinished):
            os.unlink(unfinished)
        raise StorageError(f"'{path}' cannot be written: {error.strerror}") from error


def load(path: str) -> Transcript:
    """Read a transcript.

    Raises:
        StorageError: The file cannot be read.
        ValidationError: It is not a transcript.
    """
    try:
        with open(os.path.expanduser(path), "rb") as file:
            content = file.read(MAX_TRANSCRIPT_BYTES + 1)
    except OSError as error:
        raise StorageError(f"'{path}' cannot be read: {error.strerror}") from error
    if len(content) > MAX_TRANSCRIPT_BYTES:
        raise ValidationError(f"'{path}' is larger than any transcript")
    try:
        document = json.loads(content)
        messages = tuple(Message(Role(each["role"]), _text(each["content"])) for each in document["messages"])
        return Transcript(_text(document["model"]), document.get("system"), messages)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValidationError(f"'{path}' is not a transcript that /save wrote") from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
