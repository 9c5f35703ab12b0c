"""Tool calls: sections of an answer that are no text but calls to functions.

Owns finding the sections in text that arrives piece by piece; what stands inside one is read by a parser that the
caller brings, because every family of models writes it differently.
"""

from collections.abc import Callable

import attrs

from mlxk.domain.call_text import CallText
from mlxk.domain.conversation import ToolCall
from mlxk.domain.generation import TextDelta, ToolCallDelta
from mlxk.domain.marker_scanner import MarkerScanner

ToolCallParser = Callable[[str], tuple[ToolCall, ...]]
"""Reads the inside of one section; no calls at all means that it is malformed. Never raises."""


@attrs.frozen
class ToolCallFormat:
    """How one model writes its calls."""

    start: str
    """Opens a section."""
    end: str
    """Closes it; empty when only the next section or the end of the answer does."""
    parse: ToolCallParser
    new_id: Callable[[], str] | None = None
    """Makes the id of a call that is shown while it is written, for models that write calls as JSON; None shows all
    calls when their section ends."""


class ToolCallSplitter:
    """Splits an answer into text and tool calls.

    A section is held back until it ends and comes out as its calls; a malformed one comes out as the text it is. White
    space that touches a well-formed section belongs to it and is dropped. Everything else comes out unchanged.

    Where the format allows it, a call comes out as it is written as soon as its arguments begin. It is a call from then
    on: cut or malformed later, its arguments are what there was of them.

    Args:
        style: How the model writes its calls.
    """

    def __init__(self, style: ToolCallFormat) -> None:
        self._format = style
        self._scanner = MarkerScanner(filter(None, (style.start, style.end)))
        self._section: list[str] | None = None
        """The open section's text, its start included."""
        self._written: CallText | None = None
        """The call in the open section, when it may be shown while it is written."""
        self._blank = ""
        """White space that may belong to a section after it."""
        self._after_calls = False
        self._calls = 0

    def feed(self, text: str) -> list[TextDelta | ToolCallDelta]:
        """Take the next piece of text and return what is decided by now."""
        deltas: list[TextDelta | ToolCallDelta] = []
        for piece in self._scanner.feed(text):
            self._take(piece.text, piece.marker, deltas)
        return deltas

    def flush(self, complete: bool = True) -> list[TextDelta | ToolCallDelta]:
        """Return what was held back, once the text has ended.

        Args:
            complete: Whether the model ended its turn itself. An answer that was cut may hold half a call, which some
                parsers would take for a whole one; its open section is text.
        """
        deltas: list[TextDelta | ToolCallDelta] = []
        for piece in self._scanner.flush():
            self._take(piece.text, piece.marker, deltas)
        if self._section is not None:
            self._close("", deltas, well_formed=complete)
        if self._blank:
            deltas.append(TextDelta(self._blank))
            self._blank = ""
        return deltas

    def _take(self, text: str, marker: bool, deltas: list[TextDelta | ToolCallDelta]) -> None:
        if marker and text == self._format.start and (self._section is None or not self._format.end):
            if self._section is not None:
                self._close("", deltas)
            self._section = [text]
            self._written = CallText() if self._format.new_id is not None else None
        elif self._section is None:
            self._say(text, deltas)
        elif marker and text == self._format.end:
            self._close(text, deltas)
        else:
            self._section.append(text)
            self._follow(text, deltas)

    def _say(self, text: str, deltas: list[TextDelta | ToolCallDelta]) -> None:
        if self._after_calls:
            text = text.lstrip()
        said = text.rstrip()
        if said:
            deltas.append(TextDelta(self._blank + said))
            self._blank, self._after_calls = "", False
        self._blank += text[len(said) :]

    def _follow(self, text: str, deltas: list[TextDelta | ToolCallDelta]) -> None:
        """Show what a piece of the section adds to a call that is shown while it is written."""
        if self._written is None or self._format.new_id is None:
            return
        known = self._written.name is not None
        arguments = self._written.feed(text)
        if self._written.name is not None and not known:
            deltas.append(ToolCallDelta(self._calls, ToolCall(self._written.name, "", self._format.new_id())))
        if arguments:
            deltas.append(ToolCallDelta(self._calls, ToolCall("", arguments)))

    def _close(self, end: str, deltas: list[TextDelta | ToolCallDelta], well_formed: bool = True) -> None:
        section = self._section or []
        self._section = None
        if self._written is not None and self._written.name is not None:
            self._calls += 1
            self._blank, self._after_calls = "", True
            return
        calls = self._format.parse("".join(section[1:])) if well_formed else ()
        if not calls:
            deltas.append(TextDelta(self._blank + "".join(section) + end))
            self._blank, self._after_calls = "", False
            return
        for call in calls:
            deltas.append(ToolCallDelta(self._calls, call))
            self._calls += 1
        self._blank, self._after_calls = "", True
