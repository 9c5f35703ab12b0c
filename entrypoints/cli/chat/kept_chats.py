"""Kept chats: transcripts in a private folder, saved after every turn; listed, removed and resumed by name."""

import argparse
import datetime
import os
import re
from collections.abc import Sequence

import attrs

from mlxk.domain.errors import MlxkError, StorageError, ValidationError
from mlxk.domain.generation.conversation import turns
from mlxk.entrypoints.cli.chat import transcript
from mlxk.entrypoints.cli.chat.transcript import SavedChat
from mlxk.entrypoints.cli.command_line_parser import closest, did_you_mean
from mlxk.entrypoints.settings import read_settings

SUFFIX = ".json"
_NAME = re.compile(r"[\w][\w.-]*", re.ASCII)
_PRIVATE_FOLDER = 0o700


@attrs.frozen
class KeptChat:
    """One kept chat."""

    name: str
    modified: datetime.datetime
    """Time of the last write, in UTC."""
    model: str
    turns: int
    first_words: str
    """The beginning of its first message, on one line."""


@attrs.frozen
class KeptChats:
    """The folder of kept chats, which need not exist."""

    folder: str
    """Absolute path."""

    @classmethod
    def beside(cls, history: str) -> "KeptChats":
        """Return the folder ``chats`` beside the history file of chats."""
        return cls(os.path.join(os.path.dirname(history), "chats"))

    def names(self) -> list[str]:
        """Return the names of all chats, the newest first.

        Raises:
            StorageError: The folder cannot be read.
        """
        try:
            with os.scandir(self.folder) as entries:
                files = [(_modified(entry), entry.name) for entry in entries if entry.name.endswith(SUFFIX)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"the folder of kept chats cannot be read: {error.strerror}") from error
        existing = sorted(((modified, name) for modified, name in files if modified is not None), reverse=True)
        names = (name.removesuffix(SUFFIX) for _, name in existing)
        return [name for name in names if _NAME.fullmatch(name)]

    def listed(self) -> tuple[list[KeptChat], list[str]]:
        """Return the chats, the newest first, and the names of those that cannot be read."""
        chats, unreadable = [], []
        for name in self.names():
            try:
                saved, modified = self.read(name), os.stat(self._path(name)).st_mtime
            except (MlxkError, OSError):
                if os.path.lexists(self._path(name)):  # otherwise another process has just removed it
                    unreadable.append(name)
                continue
            messages = (*saved.earlier, *saved.messages)
            words = transcript.first_words(messages)[1:-1]
            moment = datetime.datetime.fromtimestamp(modified, datetime.UTC)
            chats.append(KeptChat(name, moment, saved.model, len(turns(messages)), words))
        return chats, unreadable

    def find(self, typed: str) -> str:
        """Return the name of a chat by its exact name or a unique prefix.

        Args:
            typed: The name or prefix; empty for the newest chat.

        Raises:
            ValidationError: No chat matches, or several do.
        """
        names = self.names()
        if not names:
            raise ValidationError("no chat is kept yet", hint="Keep one with: mlxk run MODEL --keep")
        if not typed:
            return names[0]
        if typed in names:
            return typed
        matches = [name for name in names if name.startswith(typed)]
        if len(matches) == 1:
            return matches[0]
        hint = f"{did_you_mean(matches[:3] or closest(typed, names))} See all: mlxk chats".lstrip()
        if matches:
            raise ValidationError(f"'{typed}' begins the names of {len(matches)} kept chats", hint=hint)
        raise ValidationError(f"no kept chat is called '{typed}'", hint=hint)

    def read(self, name: str) -> SavedChat:
        """Return a chat.

        Raises:
            StorageError, ValidationError: See ``transcript.load``.
        """
        return transcript.load(self._path(name))

    def remove(self, names: Sequence[str]) -> None:
        """Remove chats.

        Raises:
            StorageError: One cannot be removed; those before it are removed.
        """
        for name in names:
            try:
                os.unlink(self._path(name))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise StorageError(f"the chat '{name}' cannot be removed: {error.strerror}") from error

    def create(self, saved: SavedChat) -> str:
        """Write a chat under a new name, the local date and time, and return the name.

        Raises:
            StorageError: It cannot be written.
        """
        try:
            os.makedirs(self.folder, mode=_PRIVATE_FOLDER, exist_ok=True)
            os.chmod(self.folder, _PRIVATE_FOLDER)
        except OSError as error:
            raise StorageError(f"the folder of kept chats cannot be made: {error.strerror}") from error
        name = moment = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
        number = 1
        while True:
            try:
                transcript.save(self._path(name), saved, replace=False)
            except FileExistsError:
                number += 1
                name = f"{moment}-{number}"
            else:
                return name

    def write(self, name: str, saved: SavedChat) -> None:
        """Replace a chat.

        Raises:
            StorageError: It cannot be written.
        """
        transcript.save(self._path(name), saved)

    def state(self, name: str) -> tuple[int, int] | None:
        """Return inode and modification time of a chat, which change with each write; None when it does not exist."""
        try:
            status = os.stat(self._path(name))
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name + SUFFIX)


def _modified(entry: "os.DirEntry[str]") -> int | None:
    """Return the modification time of a file in nanoseconds; 0 for a dangling link, None for a file just removed."""
    try:
        return entry.stat().st_mtime_ns
    except OSError:
        return 0 if os.path.lexists(entry.path) else None


@attrs.define
class Keeper:
    """Saves one chat after each of its turns.

    If another process has removed its file, the chat is no longer kept; if another process has changed the file, the
    chat is saved under a new name.
    """

    chats: KeptChats
    name: str | None = None
    """The chat's name; None before its first turn."""
    written: SavedChat | None = None
    """The chat as last saved or read; None before its first turn."""
    writes: bool = True
    """Whether to save the chat; one that continues a kept chat need not be kept itself."""
    _state: tuple[int, int] | None = None
    """The state of the file when it was last saved or read."""

    def resume(self, name: str) -> SavedChat:
        """Read a kept chat and return it; further turns are saved under its name.

        Raises:
            StorageError, ValidationError: See ``transcript.load``.
        """
        state = self.chats.state(name)  # before the content: a change in between must be noticed
        self.name, self.written, self._state = name, self.chats.read(name), state
        return self.written

    def begin_anew(self) -> None:
        """Leave the file as it is, and save the next turn as another chat."""
        self.name = self.written = None

    def keep(self, saved: SavedChat) -> str:
        """Save the chat if it has changed.

        Returns:
            A note for the user; may be empty.

        Raises:
            StorageError: It cannot be written, or another process has removed it; the caller stops keeping it.
        """
        if not self.writes or saved == self.written or (self.name is None and not saved.messages):
            return ""
        note = ""
        if self.name is not None:
            state = self.chats.state(self.name)
            if state is None:
                raise StorageError(f"'{self.name}' was removed")
            if state != self._state:
                note = f"'{self.name}' was changed by another chat; this one is kept under a new name"
                self.name = None
        if self.name is None:
            self.name = self.chats.create(saved)
        else:
            self.chats.write(self.name, saved)
        self.written, self._state = saved, self.chats.state(self.name)
        return note


def complete_names(action: argparse.Action) -> None:
    """Have the shell complete an argument with the names of kept chats."""
    action.completer = _names_with  # type: ignore[attr-defined]  # argcomplete's interface


def _names_with(prefix: str, **_context: object) -> list[str]:
    return [name for name in KeptChats.beside(read_settings().chat_history).names() if name.startswith(prefix)]
