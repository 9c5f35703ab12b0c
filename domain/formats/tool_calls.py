"""Tool calls: sections of an answer that are no text but calls to functions.

Owns finding the sections in text that arrives piece by piece; what stands inside one is read by a parser that the
caller brings, because every family of models writes it differently, and followed while it is written by a
``domain.formats.tool_call_stream``.
"""

from collections.abc import Callable, Sequence

import attrs

from mlxk.domain.formats.scanner import MarkerScanner
from mlxk.domain.formats.tool_call_stream import IncrementalCallParser, ToolCallParser
from mlxk.domain.generation.conversation import ToolCall
from mlxk.domain.generation.request import TextDelta, ToolCallDelta


@attrs.frozen
class ToolCallFormat:
    """How one model writes its calls."""

    start: str
    """Opens a section."""
    end: str
    """Closes it; empty when only the next section or the end of the answer does."""
    parse: ToolCallParser
    follow: Callable[[], IncrementalCallParser] | None = None
    """Makes what follows a section while it is written; None shows all calls when their section ends."""


class CallSection:
    """The inside of one section, which may turn out to be text.

    Where the format allows it, a call comes out while it is written. It is a call from then on: cut or malformed later,
    its arguments are what there was of them. Everywhere else all calls come out when the section ends.

    Args:
        style: How the model writes its calls.
        count: How many calls the answer has so far.
    """

    def __init__(self, style: ToolCallFormat, count: int) -> None:
        self.count = count
        """How many calls the answer has by now."""
        self._before = count
        self._parse = style.parse
        self._follower = style.follow() if style.follow is not None else None
        self._written: list[str] = []

    @property
    def called(self) -> bool:
        """Whether it holds a call, as far as is known."""
        return self.count > self._before

    @property
    def text(self) -> str:
        """What is written in it, as long as it holds no call."""
        return "".join(self._written)

    def feed(self, text: str) -> list[ToolCallDelta]:
        """Take the next piece of text and return what is decided by now."""
        shown = self._numbered(self._follower.feed(text)) if self._follower is not None else []
        if not self.called:
            self._written.append(text)
        return shown

    def close(self, complete: bool = True) -> list[ToolCallDelta]:
        """Return what was held back, once the section has ended.

        Args:
            complete: Whether it ended as it should. Half a call might be taken for a whole one by a parser.
        """
        if not complete:
            return []
        if self._follower is not None and self._follower.begun:
            return self._numbered(self._follower.close())
        return self._numbered(self._parse(self.text))

    def _numbered(self, calls: Sequence[ToolCall]) -> list[ToolCallDelta]:
        deltas = []
        for call in calls:
            self.count += bool(call.name)
            deltas.append(ToolCallDelta(self.count - 1, call))
        return deltas


class ToolCallSplitter:
    """Splits an answer into text and tool calls.

    A malformed section comes out as the text it is. White space that touches a well-formed one belongs to it and is
    dropped. Everything else comes out unchanged.

    Args:
        style: How the model writes its calls.
    """

    def __init__(self, style: ToolCallFormat) -> None:
        self._format = style
        self._scanner = MarkerScanner(filter(None, (style.start, style.end)))
        self._section: CallSection | None = None
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
            complete: Whether the model ended its turn itself. The open section of an answer that was cut is text,
                unless a call has begun in it.
        """
        deltas: list[TextDelta | ToolCallDelta] = []
        for piece in self._scanner.flush():
            self._take(piece.text, piece.marker, deltas)
        self._close("", deltas, complete)
        if self._blank:
            deltas.append(TextDelta(self._blank))
            self._blank = ""
        return deltas

    def _take(self, text: str, marker: bool, deltas: list[TextDelta | ToolCallDelta]) -> None:
        if marker and text == self._format.start and (self._section is None or not self._format.end):
            self._close("", deltas)
            self._section = CallSection(self._format, self._calls)
        elif self._section is None:
            self._say(text, deltas)
        elif marker and text == self._format.end:
            self._close(text, deltas)
        else:
            deltas += self._section.feed(text)

    def _say(self, text: str, deltas: list[TextDelta | ToolCallDelta]) -> None:
        if self._after_calls:
            text = text.lstrip()
        said = text.rstrip()
        if said:
            deltas.append(TextDelta(self._blank + said))
            self._blank, self._after_calls = "", False
        self._blank += text[len(said) :]

    def _close(self, end: str, deltas: list[TextDelta | ToolCallDelta], complete: bool = True) -> None:
        """End the open section, if there is one."""
        section, self._section = self._section, None
        if section is None:
            return
        deltas += section.close(complete)
        self._calls = section.count
        self._after_calls = section.called
        if not section.called:
            deltas.append(TextDelta(self._blank + self._format.start + section.text + end))
        self._blank = ""
