"""Following a tool call while it is written: what a follower does, for any notation.

A follower knows where a notation's calls begin, go on and end. Names, ids and the types of arguments are for the parser
of the notation to read: a follower hands it one opening or one argument at a time, so that every character is parsed
once. ``domain.call_text`` follows arguments in JSON and ``domain.tagged_call`` arguments in tags.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol

from mlxk.domain.conversation import ToolCall

ToolCallParser = Callable[[str], tuple[ToolCall, ...]]
"""Reads the inside of one section; no calls at all means that it is malformed. Never raises."""

LONGEST_OPENING = 1024
"""Characters within which a call must have begun; text that goes on longer without an opening is left to the parser."""


class CallFollower(Protocol):
    """Shows the calls of one section while it is written.

    A call with a name and no arguments begins a call, one without a name continues it with the next piece of its
    arguments. What was begun stays a call.
    """

    begun: bool
    """Whether a call has begun; the section is then no text any more."""

    @abstractmethod
    def feed(self, text: str) -> list[ToolCall]:
        """Take the next piece of the section and return what is decided by now. Never raises."""

    @abstractmethod
    def close(self) -> list[ToolCall]:
        """Return what is left to say once the section has ended; a section that was cut is not closed."""


def opened_by(opening: str, parse: ToolCallParser) -> ToolCall | None:
    """Return the call that begins with an opening, which is completed here to a call without arguments.

    Args:
        opening: A whole call without arguments.
        parse: Reads it.

    Returns:
        The call's name and id; None when the parser sees anything else than one call without arguments.
    """
    calls = parse(opening)
    if len(calls) != 1 or calls[0].arguments != "{}":
        return None
    return ToolCall(calls[0].name, "", calls[0].id)
