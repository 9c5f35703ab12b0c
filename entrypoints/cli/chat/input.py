"""What a line typed into the chat means: a prompt, a slash command, or the start of several lines."""

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


def read_line(line: str) -> Prompt | Command | None:
    """Return what a complete input means; None when there is nothing in it.

    Text between triple quotes is a prompt whatever it looks like.

    Raises:
        ValidationError: A slash with no command.
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
    return Command(name.lower(), argument.strip())


def wants_more(text: str) -> bool:
    """Whether an input opened triple quotes and has not closed them."""
    stripped = text.strip()
    if not stripped.startswith(MULTILINE_MARK):
        return False
    return len(stripped) < 2 * len(MULTILINE_MARK) or not stripped.endswith(MULTILINE_MARK)
