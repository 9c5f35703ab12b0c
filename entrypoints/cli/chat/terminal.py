"""The user's terminal in a chat: line editor with history and completion, questions, clipboard and external editor."""

import base64
import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle

from mlxk.domain.errors import StorageError, ValidationError
from mlxk.entrypoints.cli.chat.session import SETTING_NAMES
from mlxk.entrypoints.cli.chat.typed_input import ATTACHING, NAMES, WHOLE_LINE, is_unfinished
from mlxk.entrypoints.cli.input_files import edited
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.settings import Settings, inherited

PROMPT, CONTINUATION = ">>> ", "... "

CLIPBOARD_PROGRAMS: Sequence[tuple[str, ...]] = (
    ("pbcopy",),
    ("wl-copy",),
    ("xclip", "-selection", "clipboard"),
    ("xsel", "--clipboard", "--input"),
)
"""Commands that copy their standard input to the clipboard, in the order in which they are tried."""
_AS_UTF8 = {"LC_ALL": "en_US.UTF-8"}
"""pbcopy decodes its input by the locale, which an ssh session may lack."""

_CLIPBOARD_SECONDS = 5

MOST_ESCAPED_BYTES = 74_000
"""Longest text in bytes for the escape sequence OSC 52; common terminals take 100,000 characters of base64."""

_PATH_START = re.compile(r"(?:\.{1,2}|~)?/")


class Terminal:
    """The terminal.

    Args:
        settings: Give the history file, the editor, and the type of the terminal.
        output: Writes to the terminal.
        models: Returns the names of models, for completion.
    """

    def __init__(self, settings: Settings, output: Output, models: Callable[[], Sequence[str]]) -> None:
        self._settings, self._output = settings, output
        self._session: PromptSession[str] = PromptSession(
            history=_history(settings.chat_history),
            multiline=True,
            prompt_continuation=CONTINUATION,
            key_bindings=self._bindings(),
            completer=None if settings.dumb_terminal else ChatCompleter(models),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            enable_suspend=True,  # otherwise Ctrl-Z would insert ^Z
        )

    def read(self) -> str | None:
        """Return the next input, of one line or several; None after Ctrl-D, empty after Ctrl-C."""
        try:
            return self._session.prompt(PROMPT)
        except EOFError:
            return None
        except KeyboardInterrupt:
            return ""

    def choose(self, question: str) -> str:
        """Return the answer to a question in lower case; empty after Ctrl-C or Ctrl-D."""
        try:
            session: PromptSession[str] = PromptSession()
            return session.prompt(question).strip().lower()
        except (EOFError, KeyboardInterrupt):
            return ""

    def edit(self, text: str) -> str:
        """Have the user edit a text in their editor, and return the result.

        Raises:
            StorageError, ValidationError: There is no editor, it fails, or its result is not UTF-8 text.
        """
        path = None
        try:
            descriptor, path = tempfile.mkstemp(prefix="mlxk-message.", suffix=".md")
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            return edited(path, self._settings.editor, "nothing is sent").decode("utf-8-sig").strip("\n")
        except UnicodeDecodeError as error:
            raise ValidationError("the edited text is not UTF-8", hint="Save it as UTF-8 text.") from error
        except OSError as error:
            raise StorageError(f"the text cannot be edited: {error.strerror}") from error
        finally:
            if path is not None:
                with contextlib.suppress(OSError):
                    os.unlink(path)

    def copy(self, text: str) -> str:
        """Copy a text to the clipboard and return a confirmation that names the way.

        Raises:
            StorageError: No program and no terminal sequence can copy it.
        """
        program = None if self._settings.over_ssh else copy_with_program(text)
        if program:
            return f"copied with {program}"
        if self._settings.dumb_terminal:
            raise StorageError(
                "no program for the clipboard works here, and this terminal has none",
                hint="Write the conversation to a file instead: /save FILE",
            )
        content = text.encode()
        if len(content) > MOST_ESCAPED_BYTES:
            raise StorageError(
                "the answer is too long for the clipboard of a terminal",
                hint="Install wl-copy, xclip or xsel, or write the conversation to a file: /save FILE",
            )
        self._output.text(f"\x1b]52;c;{base64.b64encode(content).decode()}\a")
        return "handed to the terminal to be copied (OSC 52), which some terminals ignore"

    def _bindings(self) -> KeyBindings:
        bindings = KeyBindings()
        unfinished = Condition(lambda: is_unfinished(self._session.default_buffer.text))

        @bindings.add("enter", filter=unfinished)
        @bindings.add("escape", "enter")
        def _new_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")
            if self._settings.dumb_terminal:  # prompt_toolkit draws only the last character there
                self._output.text(f"\r{CONTINUATION}")

        @bindings.add("enter", filter=~unfinished)
        def _accept(event: KeyPressEvent) -> None:
            event.current_buffer.validate_and_handle()

        return bindings


def _history(path: str) -> History:
    """Return the history in a file; where it cannot be written, one in memory."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)


def copy_with_program(text: str) -> str | None:
    """Copy a text with the first program that works; return the program's name, or None when there is none."""
    for command in CLIPBOARD_PROGRAMS:
        program = shutil.which(command[0])
        if program is None:
            continue
        try:
            done = subprocess.run(  # no pipes: xclip keeps running, and would hold them open
                [program, *command[1:]],
                input=text.encode(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=inherited(_AS_UTF8 if command[0] == "pbcopy" else {}),
                timeout=_CLIPBOARD_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return command[0]
    return None


class ChatCompleter(Completer):
    """Completes slash commands, names of settings and models, and paths.

    Args:
        models: Returns the names of models.
    """

    def __init__(self, models: Callable[[], Sequence[str]]) -> None:
        self._models = models

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """Yield completions of the text before the cursor."""
        text = document.text_before_cursor
        command, separator, argument = text.partition(" ")
        name = command[1:].lower()
        if text.startswith("/") and not separator and "/" not in name:
            yield from _words(command, (f"/{each}" for each in NAMES))
        elif text.startswith("/") and name == "model":
            yield from _words(argument, self._models())
        elif text.startswith("/") and name == "set":
            yield from _words(argument, SETTING_NAMES)
        elif text.startswith("/") and name in WHOLE_LINE:
            yield from _paths(argument, escaped=False)
        else:
            word = re.search(r"(?:\\.|[^\s\\])*$", text)
            typed = word[0] if word else ""
            if _PATH_START.match(typed) or (text.startswith("/") and name in ATTACHING):
                yield from _paths(typed, escaped=True)


def _words(typed: str, known: Iterator[str] | Sequence[str]) -> Iterator[Completion]:
    for word in dict.fromkeys(known):
        if word.lower().startswith(typed.lower()):
            yield Completion(word, start_position=-len(typed))


def _paths(typed: str, *, escaped: bool) -> Iterator[Completion]:
    """Yield the paths that begin with a typed text; those of folders end with a slash.

    Args:
        typed: The beginning of a path.
        escaped: Whether spaces, quotes and backslashes are escaped by a backslash, in ``typed`` and in the paths.
    """
    plain = re.sub(r"\\(.)", r"\1", typed) if escaped else typed
    folder, _, prefix = plain.rpartition("/")
    prefix_path = f"{folder}/" if "/" in plain else ""
    try:
        entries = sorted(os.scandir(os.path.expanduser(prefix_path) or "."), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(prefix) and (prefix or not entry.name.startswith(".")):
            path = prefix_path + entry.name + ("/" if entry.is_dir() else "")
            yield Completion(
                re.sub(r"([\s\\'\"])", r"\\\1", path) if escaped else path,
                start_position=-len(typed),
                display=entry.name,
            )
