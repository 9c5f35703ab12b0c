"""Tool calls: sections of a completion that are calls to functions instead of text.

Finds the sections in streamed text. The content of a section is read by a parser that the caller passes, because every
model family has its own notation; while it is generated, an ``IncrementalCallParser`` reads it.
"""

from collections.abc import Callable, Sequence

import attrs

from mlxk.domain.formats.scanner import MarkerScanner
from mlxk.domain.formats.tool_call_stream import IncrementalCallParser, ToolCallParser
from mlxk.domain.generation.conversation import ToolCall
from mlxk.domain.generation.request import TextDelta, ToolCallDelta


@attrs.frozen
class ToolCallFormat:
    """The notation of one model."""

    start: str
    """The marker that opens a section."""
    end: str
    """The marker that closes it; empty when only the next section or the end of the completion does."""
    parse: ToolCallParser
    follow: Callable[[], IncrementalCallParser] | None = None
    """Creates the incremental parser of a section; None returns all calls when their section ends."""


class CallSection:
    """The content of one section; it is text if it contains no valid call.

    Where the format allows it, a call is returned while it is generated. It stays a call: when it is cut or malformed
    later, its arguments end there. In all other formats the calls are returned when the section ends.

    Args:
        style: The notation of the model.
        count: Number of calls in the completion before this section.
    """

    def __init__(self, style: ToolCallFormat, count: int) -> None:
        self.count = count
        """Number of calls in the completion so far."""
        self._before = count
        self._parse = style.parse
        self._follower = style.follow() if style.follow is not None else None
        self._written: list[str] = []

    @property
    def called(self) -> bool:
        """Whether a call was found in it so far."""
        return self.count > self._before

    @property
    def text(self) -> str:
        """Its text, as long as no call was found in it."""
        return "".join(self._written)

    def feed(self, text: str) -> list[ToolCallDelta]:
        """Take the next chunk of text and return the parts that are certain so far."""
        shown = self._numbered(self._follower.feed(text)) if self._follower is not None else []
        if not self.called:
            self._written.append(text)
        return shown

    def close(self, complete: bool = True) -> list[ToolCallDelta]:
        """Return the buffered remainder, after the end of the section.

        Args:
            complete: Whether it ended regularly. A parser might accept half of a call as a complete one.
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
    """Splits a completion into text and tool calls.

    A malformed section is returned as text. White space next to a well-formed one belongs to it and is dropped.
    Everything else is returned unchanged.

    Args:
        style: The notation of the model.
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
        """Take the next chunk of text and return the parts that are certain so far."""
        deltas: list[TextDelta | ToolCallDelta] = []
        for chunk in self._scanner.feed(text):
            self._take(chunk.text, chunk.marker, deltas)
        return deltas

    def flush(self, complete: bool = True) -> list[TextDelta | ToolCallDelta]:
        """Return the buffered remainder, after the end of the text.

        Args:
            complete: Whether the model ended its answer itself. The open section of an answer that was cut is text,
                unless a call has begun in it.
        """
        deltas: list[TextDelta | ToolCallDelta] = []
        for chunk in self._scanner.flush():
            self._take(chunk.text, chunk.marker, deltas)
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
        visible = text.rstrip()
        if visible:
            deltas.append(TextDelta(self._blank + visible))
            self._blank, self._after_calls = "", False
        self._blank += text[len(visible) :]

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
