"""Kept chats: transcripts in a private folder, written after every turn, listed, removed and resumed by name."""

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
    """When it was written last, in UTC."""
    model: str
    turns: int
    first_words: str
    """The beginning of its first message, on one line."""


@attrs.frozen
class KeptChats:
    """The folder of the kept chats, which need not exist."""

    folder: str
    """Its absolute path."""

    @classmethod
    def beside(cls, history: str) -> "KeptChats":
        """Return the folder in that of the history of typed lines."""
        return cls(os.path.join(os.path.dirname(history), "chats"))

    def names(self) -> list[str]:
        """Return the names of all, the newest first.

        Raises:
            StorageError: The folder cannot be read.
        """
        try:
            with os.scandir(self.folder) as entries:
                found = [(_written_at(each), each.name) for each in entries if each.name.endswith(SUFFIX)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"the folder of kept chats cannot be read: {error.strerror}") from error
        there = sorted(((written, name) for written, name in found if written is not None), reverse=True)
        names = (name.removesuffix(SUFFIX) for _, name in there)
        return [name for name in names if _NAME.fullmatch(name)]

    def listed(self) -> tuple[list[KeptChat], list[str]]:
        """Return the chats, the newest first, and the names of files that cannot be read as one."""
        chats, unreadable = [], []
        for name in self.names():
            try:
                saved, modified = self.read(name), os.stat(self._path(name)).st_mtime
            except (MlxkError, OSError):
                if os.path.lexists(self._path(name)):  # else another process has removed it meanwhile
                    unreadable.append(name)
                continue
            said = (*saved.earlier, *saved.messages)
            words = transcript.first_words(said).strip("'")
            moment = datetime.datetime.fromtimestamp(modified, datetime.UTC)
            chats.append(KeptChat(name, moment, saved.model, len(turns(said)), words))
        return chats, unreadable

    def find(self, typed: str) -> str:
        """Return the name of the chat that is meant: an exact name, or the beginning of one only.

        Args:
            typed: What the user typed; empty for the newest one.

        Raises:
            ValidationError: None, or several, are meant.
        """
        names = self.names()
        if not names:
            raise ValidationError("no chat is kept yet", hint="Keep one with: mlxk run MODEL --keep")
        if not typed:
            return names[0]
        if typed in names:
            return typed
        begun = [name for name in names if name.startswith(typed)]
        if len(begun) == 1:
            return begun[0]
        hint = f"{did_you_mean(begun[:3] or closest(typed, names))} See all: mlxk chats".lstrip()
        if begun:
            raise ValidationError(f"'{typed}' begins the names of {len(begun)} kept chats", hint=hint)
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
            StorageError: One cannot be removed; those before it are.
        """
        for name in names:
            try:
                os.unlink(self._path(name))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise StorageError(f"the chat '{name}' cannot be removed: {error.strerror}") from error

    def create(self, saved: SavedChat) -> str:
        """Write a chat under a new name, its date and time, and return the name.

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
        """Return what changes when a chat is written; None when it does not exist."""
        try:
            found = os.stat(self._path(name))
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name + SUFFIX)


def _written_at(entry: "os.DirEntry[str]") -> int | None:
    """Return when a file was written last, in nanoseconds; 0 for a link to nothing, and None when it has gone."""
    try:
        return entry.stat().st_mtime_ns
    except OSError:
        return 0 if os.path.lexists(entry.path) else None


@attrs.define
class Keeper:
    """Writes one chat after each of its turns.

    A chat that another process has removed is not kept any more; one that another process has changed goes on under a
    new name.
    """

    chats: KeptChats
    name: str | None = None
    """None before the first turn."""
    written: SavedChat | None = None
    """The chat as it was written or read last; None before its first turn."""
    writes: bool = True
    """Whether the chat is written; it may go on with a kept one without being kept itself."""
    _state: tuple[int, int] | None = None

    def resume(self, name: str) -> SavedChat:
        """Return the chat of a name, which is kept under it from now on.

        Raises:
            StorageError, ValidationError: See ``transcript.load``.
        """
        self.name, self.written, self._state = name, self.chats.read(name), self.chats.state(name)
        return self.written

    def begin_anew(self) -> None:
        """Leave the chat as it is written, and begin another one with the next turn."""
        self.name = self.written = None

    def keep(self, saved: SavedChat) -> str:
        """Write the chat if it has changed.

        Returns:
            A sentence for the user; empty when there is nothing to tell.

        Raises:
            StorageError: It cannot be written, or was removed; it is not to be kept any more.
        """
        if not self.writes or saved == self.written or (self.name is None and not saved.messages):
            return ""
        said = ""
        if self.name is not None:
            state = self.chats.state(self.name)
            if state is None:
                raise StorageError(f"'{self.name}' was removed")
            if state != self._state:
                said = f"'{self.name}' was changed by another chat; this one is kept under a new name"
                self.name = None
        if self.name is None:
            self.name = self.chats.create(saved)
        else:
            self.chats.write(self.name, saved)
        self.written, self._state = saved, self.chats.state(self.name)
        return said


def complete_names(action: argparse.Action) -> None:
    """Have the shell complete an argument with the names of kept chats."""
    action.completer = _completed  # type: ignore[attr-defined]  # argcomplete's interface


def _completed(prefix: str, **_context: object) -> list[str]:
    return [name for name in KeptChats.beside(read_settings().chat_history).names() if name.startswith(prefix)]
