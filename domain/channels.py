"""Channelled answers (the harmony format of gpt-oss): every message of an answer names its channel.

    <|channel|>analysis<|message|>thought<|end|>
    <|start|>assistant<|channel|>commentary to=functions.name <|constrain|>json<|message|>{"a": 1}<|call|>
    <|start|>assistant<|channel|>final<|message|>the answer<|return|>

Owns splitting them into reasoning, tool calls and text, fed piece by piece; tagged reasoning is ``domain.reasoning``'s.
"""

import enum
import re

from mlxk.domain.generation import AnswerDelta, ReasoningDelta, TextDelta, ToolCallDelta
from mlxk.domain.marker_scanner import MarkerScanner
from mlxk.domain.tool_calls import ToolCallParser

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_RECIPIENT = re.compile(r"\bto=[^\s<]")
_HEADER = re.compile(r"<\|(start|channel)\|>[\w .=-]*(<\|channel\|>[^\n]*)?")
_CHANNEL_NAME = re.compile(r"<\|channel\|>\s*(\w+)")


class _Kind(enum.Enum):
    BETWEEN = enum.auto()
    HEADER = enum.auto()
    TEXT = enum.auto()
    REASONING = enum.auto()
    CALL = enum.auto()


class ChannelSplitter:
    """Splits a channelled answer.

    The analysis channel is reasoning, a message with a recipient is a tool call, every other message is text. Text that
    names no channel and a malformed call come out as text, so nothing that was said is lost.

    Args:
        prompt_tail: The end of the prompt, which may have begun a message.
        parse: Reads a call: the message's header, ``<|message|>`` and its content. None when no tools are on offer;
            then a message with a recipient is what its channel says.
    """

    def __init__(self, prompt_tail: str = "", parse: ToolCallParser | None = None) -> None:
        self._parse = parse
        self._scanner = MarkerScanner((_START, _CHANNEL, _MESSAGE, *_ENDS))
        self._kind = _Kind.TEXT
        self._given = ""
        """The part of the header at hand that stands in the prompt."""
        self._header: list[str] = []
        self._content: list[str] = []
        self._calls = 0
        _, begun, last = prompt_tail.rpartition(_START)
        if begun and not any(end in last for end in _ENDS):
            header, spoken, _ = last.partition(_MESSAGE)
            self._given, self._kind = header, _Kind.HEADER
            if spoken:
                self._kind = self._kind_of_message()

    @property
    def thinking(self) -> bool:
        """Whether a message of reasoning is open."""
        return self._kind is _Kind.REASONING

    @property
    def answering(self) -> bool:
        """Whether a message of text is open."""
        return self._kind is _Kind.TEXT

    def feed(self, text: str) -> list[AnswerDelta]:
        """Take the next piece of text and return what is decided by now."""
        deltas: list[AnswerDelta] = []
        for piece in self._scanner.feed(text):
            self._take(piece.text, piece.marker, deltas)
        return deltas

    def flush(self, complete: bool = True) -> list[AnswerDelta]:
        """Return what was held back, once the text has ended.

        Args:
            complete: Whether the model ended its turn itself; a call that was cut is text.
        """
        deltas: list[AnswerDelta] = []
        for piece in self._scanner.flush():
            self._take(piece.text, piece.marker, deltas)
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
        elif self._kind is _Kind.CALL:
            self._content.append(text)
        elif self._kind is _Kind.REASONING:
            deltas.append(ReasoningDelta(text))
        else:
            self._kind = _Kind.TEXT
            deltas.append(TextDelta(text))

    def _head(self, text: str, marker: bool, deltas: list[AnswerDelta]) -> None:
        self._header.append(text)
        if marker and text == _MESSAGE:
            self._kind = self._kind_of_message()
            if self._kind is not _Kind.CALL:
                self._header = []
        elif self._given and not _may_be_header("".join(self._header)):
            # The prompt began a message and the model goes on without naming a channel.
            self._end(deltas)
            self._kind = _Kind.TEXT

    def _kind_of_message(self) -> _Kind:
        header = self._given + "".join(self._header)
        self._given = ""
        if self._parse is not None and _RECIPIENT.search(header):
            return _Kind.CALL
        name = _CHANNEL_NAME.search(header)
        return _Kind.REASONING if name and name[1] == "analysis" else _Kind.TEXT

    def _end(self, deltas: list[AnswerDelta], complete: bool = True) -> None:
        """End the message at hand; what follows is text unless a header begins."""
        written = "".join([*self._header, *self._content])
        if self._kind is _Kind.HEADER and _HEADER.fullmatch(written):
            written = ""
        calls = self._parse(written) if self._parse and complete and self._kind is _Kind.CALL else ()
        for call in calls:
            deltas.append(ToolCallDelta(self._calls, call))
            self._calls += 1
        if written and not calls:
            deltas.append(TextDelta(written))
        self._kind, self._given, self._header, self._content = _Kind.BETWEEN, "", [], []


def _may_be_header(text: str) -> bool:
    """Whether what follows the role in a header begins as it should: with a recipient or a channel."""
    return text.startswith(_CHANNEL) or "to=".startswith(text.lstrip()[:3])
