"""Channelled answers (the harmony format of gpt-oss): every message of an answer names its channel.

    <|channel|>analysis<|message|>thought<|end|>
    <|start|>assistant<|channel|>commentary to=functions.name <|constrain|>json<|message|>{"a": 1}<|call|>
    <|start|>assistant<|channel|>final<|message|>the answer<|return|>

Owns splitting them into reasoning, tool calls and text incrementally; tagged reasoning is ``reasoning``'s.
"""

import enum
import re
from collections.abc import Sequence

from mlxk.domain.formats.scanner import MarkerScanner
from mlxk.domain.formats.tool_calls import CallSection, ToolCallFormat
from mlxk.domain.generation.request import AnswerDelta, ReasoningDelta, TextDelta

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_RECIPIENT_KEY = "to="
_RECIPIENT = re.compile(rf"\b{_RECIPIENT_KEY}[^\s<]")
_HEADER = re.compile(r"<\|(start|channel)\|>[\w .=-]*(<\|channel\|>[^\n]*)?")
_CHANNEL_NAME = re.compile(r"<\|channel\|>\s*(\w+)")


class _Kind(enum.Enum):
    BETWEEN = enum.auto()
    HEADER = enum.auto()
    TEXT = enum.auto()
    REASONING = enum.auto()
    CALL = enum.auto()


class HarmonyParser:
    """Splits a channelled answer.

    The analysis channel is reasoning, a message with a recipient is a tool call, every other message is text. Text that
    names no channel and a malformed call come out as text, so nothing that was said is lost.

    Args:
        prompt_tail: The end of the prompt, which may have begun a message.
        tools: How calls are written: the message's header, ``<|message|>`` and its content. None when no tools are on
            offer; then a message with a recipient is what its channel says.
    """

    def __init__(self, prompt_tail: str = "", tools: ToolCallFormat | None = None) -> None:
        self._tools = tools
        self._scanner = MarkerScanner((_START, _CHANNEL, _MESSAGE, *_ENDS))
        self._kind = _Kind.TEXT
        self._given = ""
        """The part of the header at hand that stands in the prompt."""
        self._lead = ""
        """The first characters after it, as many as tell whether a recipient follows."""
        self._header: list[str] = []
        self._call: CallSection | None = None
        """The call at hand, its header included."""
        self._calls = 0
        _, begun, last = prompt_tail.rpartition(_START)
        if begun and not any(end in last for end in _ENDS):
            header, spoken, _ = last.partition(_MESSAGE)
            self._given, self._kind = header, _Kind.HEADER
            if spoken:
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
                # The prompt began a message and the model goes on without naming a channel.
                self._end(deltas)
                self._kind = _Kind.TEXT

    def _begin_message(self) -> Sequence[AnswerDelta]:
        """Tell from its header what kind of message begins; return what the header holds of a call."""
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
        """End the message at hand; what follows is text unless a header begins."""
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
