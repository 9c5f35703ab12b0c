"""Parses the input of a chat: a message, a slash command, or a file to attach; and has the help of the commands."""

import re
from collections.abc import Mapping

import attrs

from mlxk.domain.errors import ValidationError
from mlxk.entrypoints.cli.command_line_parser import closest, did_you_mean
from mlxk.entrypoints.cli.input_files import names_file_first

MULTILINE_MARK = '"""'
EXIT_WORDS = frozenset({"exit", "quit", "q"})


@attrs.frozen
class Prompt:
    """A user message."""

    text: str
    quoted: bool = False
    """Whether it was typed between triple quotes; media that it names are not attached then."""


@attrs.frozen
class SlashCommand:
    """A slash command and its argument."""

    name: str
    argument: str = ""


@attrs.frozen
class AttachCommand:
    """``/image``, ``/video``, ``/audio`` or ``/file``: adds a file to a message."""

    name: str
    """One of ``ATTACHING``."""
    file: str
    """As typed, without quotes."""
    question: str = ""
    """The message to send with it at once; empty adds it to the next message."""


ChatInput = Prompt | SlashCommand | AttachCommand

ATTACHING: Mapping[str, str] = {
    "image": "/image photo.jpg What is this?",
    "video": "/video clip.mp4 What happens?",
    "audio": "/audio talk.wav What is said?",
    "file": "/file notes.md Summarize this",
}
"""An example of each command that attaches a file to a message."""

WHOLE_LINE = frozenset({"save", "load"})
"""Commands whose whole argument is one path, in which spaces need no escape."""

LONE = frozenset({"retry", "undo", "copy", "stats", "show", "clear", "exit"})
"""Commands without an argument; words after them are an error, since they would be lost."""

_FILE = re.compile(r"""(?:"([^"]+)"|'([^']+)'|((?:\\.|[^\s\\])+))(?:\s+(.*))?""", re.DOTALL)
"""Matches a path in quotes or with spaces escaped, the forms in which terminals insert a dropped file; then words."""


def parse_input(line: str) -> ChatInput | None:
    """Parse a complete input; return None for a blank one.

    Text between triple quotes is always a prompt.

    Raises:
        ValidationError: A slash without a command, ``/image`` and the like without a file, or words after a command
            that takes none.
    """
    stripped = line.strip()
    if stripped.startswith(MULTILINE_MARK):
        text = stripped.removeprefix(MULTILINE_MARK).removesuffix(MULTILINE_MARK).strip("\n")
        return Prompt(text, quoted=True)
    if not stripped:
        return None
    if stripped.lower() in EXIT_WORDS:
        return SlashCommand("exit")
    if not stripped.startswith("/") or names_file_first(stripped):
        return Prompt(line)
    typed = re.split(r"\s", stripped[1:], maxsplit=1)[0]
    name, argument = typed.lower(), stripped[1 + len(typed) :].strip()
    if not name:
        raise ValidationError("a slash needs a command after it", hint="Type /help for the commands.")
    if argument and ALIASES.get(name, name) in LONE:
        raise ValidationError(f"/{name} takes nothing after it (got '{argument}')", hint=f"Write only /{name}.")
    if name in ATTACHING:
        return _attach_command(name, argument)
    return SlashCommand(name, _path(argument) if name in WHOLE_LINE else argument)


def _path(argument: str) -> str:
    """Return the path in an argument without its quotes or escapes, which terminals add to a dropped file."""
    quoted = re.fullmatch(r"""(["'])(.+)\1""", argument)
    return quoted[2] if quoted else re.sub(r"""\\([\s\\'"])""", r"\1", argument)


def _attach_command(name: str, argument: str) -> AttachCommand:
    match = _FILE.fullmatch(argument)
    if match is None:
        raise ValidationError(f"/{name} needs a file", hint=f"For example: {ATTACHING[name]}")
    quoted, single_quoted, bare, question = match.groups()
    return AttachCommand(name, quoted or single_quoted or re.sub(r"\\(.)", r"\1", bare), (question or "").strip())


def is_unfinished(text: str) -> bool:
    """Whether an input has opening triple quotes and no closing ones."""
    stripped = text.strip()
    if not stripped.startswith(MULTILINE_MARK):
        return False
    return len(stripped) < 2 * len(MULTILINE_MARK) or not stripped.endswith(MULTILINE_MARK)


COMMANDS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "retry": (("/retry", "answer the last message again"),),
    "undo": (("/undo", "take back the last message and its answer"),),
    "edit": (
        ("/edit", "write the next message in your editor ($VISUAL or $EDITOR)"),
        ("/edit last", "change the last message there, and ask again"),
    ),
    "copy": (("/copy", "copy the last answer to the clipboard"),),
    "file": (("/file FILE [QUESTION]", "add a text file to this message or to your next one"),),
    "image": (
        (
            "/image FILE [QUESTION]",
            "the same with an image; a message may also name it: What is this? ./photo.jpg",
        ),
    ),
    "video": (("/video FILE [QUESTION]", "the same with a clip, of which the model gets frames with their times"),),
    "audio": (("/audio FILE [QUESTION]", "the same with a recording, where the model takes sound"),),
    "stats": (("/stats", "tokens, tokens per second, time to the first token, context used"),),
    "set": (
        ("/set NAME VALUE", "temperature, top_p, top_k, min_p, max_tokens, seed, stop, repetition_penalty,"),
        ("", "presence_penalty, frequency_penalty; VALUE 'default' undoes it"),
        ("/set verbose", "show tokens per second after an answer (/set quiet: do not)"),
        ("/set thinking", "have the model reason first (/set nothinking: answer at once)"),
        ("/set reasoning", "show what the model thinks (/set noreasoning: do not)"),
    ),
    "show": (("/show", "model, settings and system prompt"),),
    "system": (("/system [TEXT]", "set the system prompt; without text, remove it"),),
    "model": (("/model [NAME]", "go on with another model; the conversation stays"),),
    "clear": (("/clear", "forget the conversation"),),
    "drop": (("/drop [N]", "have the model forget the oldest turn, or the N oldest"),),
    "summarize": (
        ("/summarize [N]", "go on with a summary by the model of all turns, or of the N oldest (also /compact)"),
    ),
    "save": (("/save FILE", "write the conversation to a file"),),
    "load": (("/load FILE", "continue a conversation from a file"),),
    "help": (("/help, /?", "this list; /help NAME: one command"),),
    "exit": (("/exit, /quit, /bye", "leave, as Ctrl-D does"),),
}
"""The lines of the help, by command."""

ALIASES: Mapping[str, str] = {
    "?": "help",
    "bye": "exit",
    "quit": "exit",
    "summarise": "summarize",
    "compact": "summarize",
}
"""Other names of commands."""

NAMES = (*COMMANDS, *ALIASES)
"""All names of slash commands."""

_WIDTH = 24

HELP = "\n".join(
    [
        *(f"{usage:<{_WIDTH}}{text}" for lines in COMMANDS.values() for usage, text in lines),
        'Ctrl-C stops an answer. Tab completes. Alt-Enter begins a new line; """ begins and ends several lines.',
    ]
)


def help_about(argument: str) -> str:
    """Return the help of the command that an argument names, or of all for an empty one.

    Raises:
        ValidationError: There is no such command.
    """
    name = argument.lower().removeprefix("/")
    if not name:
        return HELP
    lines = COMMANDS.get(ALIASES.get(name, name))
    if lines is None:
        raise unknown_command(name)
    return "\n".join(f"{usage:<{_WIDTH}}{text}" for usage, text in lines)


def unknown_command(name: str) -> ValidationError:
    """Return the error about an unknown command, with similar names."""
    near = did_you_mean(f"/{each}" for each in closest(name, NAMES))
    more = f" A message that begins with a slash stands between {MULTILINE_MARK}." if "/" in name else ""
    return ValidationError(f"there is no command /{name}", hint=f"{near} Type /help for the commands.{more}".lstrip())
