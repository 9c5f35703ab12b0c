"""What a line typed into the chat means: a prompt, an image, a slash command, or the start of several lines."""

import re

import attrs

from mlxk.domain.errors import ValidationError

MULTILINE_MARK = '"""'
LEAVING_WORDS = frozenset({"exit", "quit", "q"})


@attrs.frozen
class Prompt:
    """Something to say to the model."""

    text: str


@attrs.frozen
class Command:
    """Something to do: a slash command."""

    name: str
    argument: str = ""


@attrs.frozen
class Picture:
    """Something to show the model."""

    file: str
    """As typed, without its quotes."""
    question: str = ""
    """What to ask about it at once; empty waits for the next prompt."""


Meaning = Prompt | Command | Picture

_FILE = re.compile(r"""(?:"([^"]+)"|'([^']+)'|((?:\\.|[^\s\\])+))(?:\s+(.*))?""", re.DOTALL)
"""A file name, in quotes or with its spaces escaped as terminals do when a file is dropped on them; then a question."""


def read_line(line: str) -> Meaning | None:
    """Return what a complete input means; None when there is nothing in it.

    Text between triple quotes is a prompt whatever it looks like.

    Raises:
        ValidationError: A slash with no command, or an image with no name.
    """
    stripped = line.strip()
    if stripped.startswith(MULTILINE_MARK):
        return Prompt(stripped.removeprefix(MULTILINE_MARK).removesuffix(MULTILINE_MARK).strip("\n"))
    if not stripped:
        return None
    if stripped.lower() in LEAVING_WORDS:
        return Command("exit")
    if not stripped.startswith("/"):
        return Prompt(line)
    name, _, argument = stripped[1:].partition(" ")
    if not name:
        raise ValidationError("a slash needs a command after it", hint="Type /help for the commands.")
    if name.lower() == "image":
        return _picture(argument.strip())
    return Command(name.lower(), argument.strip())


def _picture(argument: str) -> Picture:
    found = _FILE.fullmatch(argument)
    if found is None:
        raise ValidationError("/image needs a file", hint="For example: /image photo.jpg What is this?")
    quoted, apostrophed, bare, question = found.groups()
    return Picture(quoted or apostrophed or re.sub(r"\\(.)", r"\1", bare), (question or "").strip())


def wants_more(text: str) -> bool:
    """Whether an input opened triple quotes and has not closed them."""
    stripped = text.strip()
    if not stripped.startswith(MULTILINE_MARK):
        return False
    return len(stripped) < 2 * len(MULTILINE_MARK) or not stripped.endswith(MULTILINE_MARK)
