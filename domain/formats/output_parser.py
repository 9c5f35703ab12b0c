"""The output parser: splits decoded text into reasoning, text and tool calls, chunk by chunk.

Composes the stages in their fixed order: stop sequences, then reasoning, then tool calls. The input comes from the
detokenizer. The deltas of a stream, joined, equal the parsed completion.
"""

import enum
import re
from collections.abc import Iterable, Sequence

from mlxk.domain.formats.reasoning import ReasoningFormat, ReasoningStyle
from mlxk.domain.formats.scanner import MarkerScanner, StopSequences
from mlxk.domain.formats.tool_calls import CallSection, ToolCallFormat, ToolCallSplitter
from mlxk.domain.generation.request import AnswerDelta, ReasoningDelta, TextDelta

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_RECIPIENT_KEY = "to="
_RECIPIENT = re.compile(rf"\b{_RECIPIENT_KEY}[^\s<]")
_HEADER = re.compile(r"<\|(start|channel)\|>[\w .=-]*(<\|channel\|>[^\n]*)?")
_CHANNEL_NAME = re.compile(r"<\|channel\|>\s*(\w+)")


class ReasoningSplitter:
    """Splits a completion with reasoning tags into reasoning and text.

    Reasoning opens only before the first visible text, so a completion that mentions a tag keeps it. White space before
    a block and the newlines next to its tags belong to the tags, as templates write them: the newlines directly after
    its start, before its end and after its end are dropped. A block that is never closed is reasoning to the end.
    Everything else is returned unchanged.

    Args:
        style: A format with tags.
        opened: Whether the prompt opened a block already.
    """

    def __init__(self, style: ReasoningFormat, opened: bool = False) -> None:
        self._format = style
        self._scanner = MarkerScanner((style.start, style.end, *style.structure))
        self._thinking = opened
        self._answering = False
        self._blank = ""
        """White space before the first visible text."""
        self._after_block = False
        self._thought = False
        """Whether the current block has any text yet."""
        self._newlines = 0
        """Newlines of the block that would be dropped with its end."""

    @property
    def thinking(self) -> bool:
        """Whether a block of reasoning is open."""
        return self._thinking

    @property
    def past_reasoning(self) -> bool:
        """Whether visible text was returned, so that no block can open any more."""
        return self._answering

    def feed(self, text: str) -> list[TextDelta | ReasoningDelta]:
        """Take the next chunk of text and return the parts that are certain so far."""
        deltas: list[TextDelta | ReasoningDelta] = []
        for chunk in self._scanner.feed(text):
            self._take(chunk.text, chunk.marker, deltas)
        return deltas

    def flush(self) -> list[TextDelta | ReasoningDelta]:
        """Return the buffered remainder, after the end of the text."""
        deltas: list[TextDelta | ReasoningDelta] = []
        for chunk in self._scanner.flush():
            self._take(chunk.text, chunk.marker, deltas)
        if self._thinking and self._newlines and self._thought:
            deltas.append(ReasoningDelta("\n" * self._newlines))
        if self._blank:
            deltas.append(TextDelta(self._blank))
        self._newlines, self._blank = 0, ""
        return deltas

    def _take(self, text: str, marker: bool, deltas: list[TextDelta | ReasoningDelta]) -> None:
        if marker and text in self._format.structure and not self._thinking:
            return
        if self._thinking:
            self._think(text, marker and text == self._format.end, deltas)
        elif self._answering:
            deltas.append(TextDelta(text))
        elif marker:
            self._thinking = text == self._format.start
            self._thought, self._after_block, self._blank = False, True, ""
        else:
            self._begin(text, deltas)

    def _think(self, text: str, ends: bool, deltas: list[TextDelta | ReasoningDelta]) -> None:
        if ends:
            self._thinking, self._newlines = False, 0
            self._after_block = True
            return
        if not self._thought:
            # A model may repeat the start that the template has written for it.
            text = "" if text == self._format.start else text.lstrip("\n")
        visible = text.rstrip("\n")
        if visible:
            deltas.append(ReasoningDelta("\n" * self._newlines + visible))
            self._thought, self._newlines = True, 0
        if self._thought:
            self._newlines += len(text) - len(visible)

    def _begin(self, text: str, deltas: list[TextDelta | ReasoningDelta]) -> None:
        if self._after_block and not self._blank:
            text = text.lstrip("\n")
        self._blank += text
        if text and not text.isspace():
            deltas.append(TextDelta(self._blank))
            self._answering, self._blank = True, ""


class _Kind(enum.Enum):
    BETWEEN = enum.auto()
    HEADER = enum.auto()
    TEXT = enum.auto()
    REASONING = enum.auto()
    CALL = enum.auto()


class HarmonyParser:
    """Splits a completion in the harmony format of gpt-oss, whose messages name their channel.

        <|channel|>analysis<|message|>thought<|end|>
        <|start|>assistant<|channel|>commentary to=functions.name <|constrain|>json<|message|>{"a": 1}<|call|>
        <|start|>assistant<|channel|>final<|message|>the answer<|return|>

    The analysis channel is reasoning, a message with a recipient is a tool call, every other message is text. Text
    without a channel and malformed calls are returned as text, so that no output is lost.

    Args:
        prompt_tail: The end of the prompt, which may have begun a message.
        tools: The notation of calls: the message's header, ``<|message|>`` and its content. None when the request
            has no tools; the channel then decides about a message with a recipient.
    """

    def __init__(self, prompt_tail: str = "", tools: ToolCallFormat | None = None) -> None:
        self._tools = tools
        self._scanner = MarkerScanner((_START, _CHANNEL, _MESSAGE, *_ENDS))
        self._kind = _Kind.TEXT
        self._given = ""
        """The part of the current header that is in the prompt."""
        self._lead = ""
        """The first characters after it, as many as are needed to detect a recipient."""
        self._header: list[str] = []
        self._call: CallSection | None = None
        """The current call, its header included."""
        self._calls = 0
        _, begun, last = prompt_tail.rpartition(_START)
        if begun and not any(end in last for end in _ENDS):
            header, separator, _ = last.partition(_MESSAGE)
            self._given, self._kind = header, _Kind.HEADER
            if separator:
                self._begin_message()

    @property
    def thinking(self) -> bool:
        """Whether a message of reasoning is open."""
        return self._kind is _Kind.REASONING

    @property
    def answering(self) -> bool:
        """Whether a message of text is open."""
        return self._kind is _Kind.TEXT

    def feed(self, text: str) -> list[AnswerDelta]:
        """Take the next chunk of text and return the parts that are certain so far."""
        deltas: list[AnswerDelta] = []
        for chunk in self._scanner.feed(text):
            self._take(chunk.text, chunk.marker, deltas)
        return deltas

    def flush(self, complete: bool = True) -> list[AnswerDelta]:
        """Return the buffered remainder, after the end of the text.

        Args:
            complete: Whether the model ended its answer itself; a call that was cut is text.
        """
        deltas: list[AnswerDelta] = []
        for chunk in self._scanner.flush():
            self._take(chunk.text, chunk.marker, deltas)
        self._end(deltas, complete)
        return deltas

    def _take(self, text: str, marker: bool, deltas: list[AnswerDelta]) -> None:
        if marker and text in _ENDS:
            self._end(deltas)
        elif marker and (text == _START or (text == _CHANNEL and self._kind is not _Kind.HEADER)):
            self._end(deltas)
            self._kind, self._header = _Kind.HEADER, [text]
        elif self._kind is _Kind.HEADER:
            self._head(text, marker, deltas)
        elif self._call is not None:
            deltas += self._call.feed(text)
        elif self._kind is _Kind.REASONING:
            deltas.append(ReasoningDelta(text))
        else:
            self._kind = _Kind.TEXT
            deltas.append(TextDelta(text))

    def _head(self, text: str, marker: bool, deltas: list[AnswerDelta]) -> None:
        self._header.append(text)
        if marker and text == _MESSAGE:
            deltas += self._begin_message()
        elif self._given and self._header[0] != _CHANNEL:
            self._lead = (self._lead + text).lstrip()[: len(_RECIPIENT_KEY)]
            if not _RECIPIENT_KEY.startswith(self._lead):
                # The prompt began a message and the model continues without naming a channel.
                self._end(deltas)
                self._kind = _Kind.TEXT

    def _begin_message(self) -> Sequence[AnswerDelta]:
        """Read from its header what kind of message begins; return the part of a call in the header."""
        written = "".join(self._header)
        header = self._given + written
        self._given, self._header = "", []
        if self._tools is not None and _RECIPIENT.search(header):
            self._kind, self._call = _Kind.CALL, CallSection(self._tools, self._calls)
            return self._call.feed(written)
        name = _CHANNEL_NAME.search(header)
        self._kind = _Kind.REASONING if name and name[1] == "analysis" else _Kind.TEXT
        return ()

    def _end(self, deltas: list[AnswerDelta], complete: bool = True) -> None:
        """End the current message; the following output is text unless a header begins."""
        written = "".join(self._header)
        if self._call is not None:
            deltas += self._call.close(complete)
            self._calls = self._call.count
            written = "" if self._call.called else self._call.text
        elif _HEADER.fullmatch(written):
            written = ""
        if written:
            deltas.append(TextDelta(written))
        self._kind, self._given, self._header, self._call = _Kind.BETWEEN, "", [], None


class OutputParser:
    """Parses one completion.

    Args:
        stops: Strings that end it; they match anywhere in the output, markers included.
        reasoning: The markup of reasoning; None when there is none, or when reasoning stays in the text.
        tools: The notation of tool calls; None when the request has no tools.
        prompt_tail: The end of the rendered prompt, which may have opened a block of reasoning.
    """

    def __init__(
        self,
        stops: Iterable[str] = (),
        reasoning: ReasoningFormat | None = None,
        tools: ToolCallFormat | None = None,
        prompt_tail: str = "",
    ) -> None:
        self._stops = StopSequences(stops)
        self._channels: HarmonyParser | None = None
        self._tags: ReasoningSplitter | None = None
        self._tools: ToolCallSplitter | None = None
        if reasoning is not None and reasoning.style is ReasoningStyle.CHANNELS:
            self._channels = HarmonyParser(prompt_tail, tools)
            return
        if reasoning is not None:
            self._tags = ReasoningSplitter(reasoning, reasoning.opened_by(prompt_tail))
        if tools is not None:
            self._tools = ToolCallSplitter(tools)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found; text fed afterwards is ignored."""
        return self._stops.stopped

    @property
    def thinking(self) -> bool:
        """Whether a block of reasoning is open."""
        splitter = self._channels or self._tags
        return splitter is not None and splitter.thinking

    @property
    def answering(self) -> bool:
        """Whether the next text belongs to the answer, neither to reasoning nor to the markup around it."""
        return self._channels.answering if self._channels is not None else not self.thinking

    @property
    def past_reasoning(self) -> bool:
        """Whether no more reasoning can follow; with channels it always can."""
        return self._channels is None and (self._tags is None or self._tags.past_reasoning)

    def feed(self, text: str) -> list[AnswerDelta]:
        """Take the next chunk of decoded text, which may be empty, and return the parts that are certain so far."""
        return self._split(self._stops.feed(text)[0])

    def flush(self, complete: bool = True) -> list[AnswerDelta]:
        """Return the buffered remainder, after the end of the text.

        Read ``stopped`` afterwards: a stop string may have been decided only now.

        Args:
            complete: Whether the model ended its answer itself, instead of being cut by a limit or cancelled.
        """
        deltas = self._split(self._stops.flush())
        complete = complete and not self.stopped
        if self._channels is not None:
            return _joined([*deltas, *self._channels.flush(complete)])
        if self._tags is not None:
            for delta in self._tags.flush():
                deltas += self._call(delta)
        if self._tools is not None:
            deltas += self._tools.flush(complete)
        return _joined(deltas)

    def _split(self, text: str) -> list[AnswerDelta]:
        if not text:
            return []
        if self._channels is not None:
            return _joined(self._channels.feed(text))
        if self._tags is None:
            return self._call(TextDelta(text))
        deltas: list[AnswerDelta] = []
        for delta in self._tags.feed(text):
            deltas += self._call(delta)
        return _joined(deltas)

    def _call(self, delta: TextDelta | ReasoningDelta) -> list[AnswerDelta]:
        if self._tools is None or isinstance(delta, ReasoningDelta):
            return [delta]
        return [*self._tools.feed(delta.text)]


def _joined(deltas: list[AnswerDelta]) -> list[AnswerDelta]:
    """Join adjacent deltas of one kind."""
    joined: list[AnswerDelta] = []
    for delta in deltas:
        last = joined[-1] if joined else None
        if isinstance(last, TextDelta) and isinstance(delta, TextDelta):
            joined[-1] = TextDelta(last.text + delta.text)
        elif isinstance(last, ReasoningDelta) and isinstance(delta, ReasoningDelta):
            joined[-1] = ReasoningDelta(last.text + delta.text)
        else:
            joined.append(delta)
    return joined
