"""The output parser: splits the text from the detokenizer into reasoning, text and tool calls, chunk by chunk.

The stages have a fixed order: stop sequences, then reasoning, then tool calls.
"""

import enum
import re
from collections.abc import Iterable

from mlxk.domain.formats.reasoning import RECIPIENTS, ReasoningFormat, ReasoningSplitter, ReasoningStyle
from mlxk.domain.formats.scanner import MarkerScanner, StopSequences
from mlxk.domain.formats.tool_arguments import Call, NoCallError, whole_value
from mlxk.domain.formats.tool_calls import ForcedCallSplitter, ToolCallFormat, ToolCallSplitter
from mlxk.domain.formats.values import MalformedValueError
from mlxk.domain.generation.conversation import ToolCall
from mlxk.domain.generation.request import AnswerDelta, ReasoningDelta, TextDelta, ToolCallDelta

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|eom|>", "<|eot|>")
_RECIPIENT_KEY = "to="
_RECIPIENT = re.compile(rf"\b{_RECIPIENT_KEY}([^\s<]+)")
_HEADER = re.compile(r"<\|(start|channel)\|>[\w .=-]*(<\|channel\|>[^\n]*)?")
_CHANNEL_NAME = re.compile(r"<\|channel\|>\s*(\w+)")


class _Kind(enum.Enum):
    BETWEEN = enum.auto()
    HEADER = enum.auto()
    TEXT = enum.auto()
    REASONING = enum.auto()
    CALL = enum.auto()


class ChannelParser:
    """Splits a completion of messages with headers.

    In the harmony format of gpt-oss a header names the channel and the recipient:

        <|channel|>analysis<|message|>thought<|end|>
        <|start|>assistant<|channel|>commentary to=functions.name <|constrain|>json<|message|>{"a": 1}<|call|>
        <|start|>assistant<|channel|>final<|message|>the answer<|return|>

    The analysis channel is reasoning, a message with a recipient is a tool call, every other message is text. Muse
    names only recipients: ``to=self`` is reasoning, ``to=user`` the answer, and calls have their own syntax. Text
    without a header and malformed calls are returned as text, so that no output is lost.

    Args:
        style: A format with channels.
        prompt_tail: The end of the prompt, which may have begun a message.
        tools: The format of tool calls; None when the request has no tools, so that a message with a recipient is
            classified by its channel.
    """

    def __init__(self, style: ReasoningFormat, prompt_tail: str = "", tools: ToolCallFormat | None = None) -> None:
        self._recipients = style is RECIPIENTS
        self._tools = tools
        self._splitter: ToolCallSplitter | None = None
        """Splits the current message of text, where calls have their own syntax."""
        self._scanner = MarkerScanner((_START, _CHANNEL, _MESSAGE, *_ENDS))
        self._kind = _Kind.TEXT
        self._prompt_header = ""
        """The part of the current header that is in the prompt."""
        self._lead = ""
        """The first generated characters of that header, as many as are needed to detect a recipient."""
        self._header: list[str] = []
        """The generated part of the current header."""
        self._recipient = ""
        """The recipient of the current call: the function."""
        self._call: list[str] | None = None
        """The arguments of the current call; None outside of calls."""
        self._calls = 0
        """Number of calls so far."""
        _, begun, last = prompt_tail.rpartition(_START)
        if begun and not any(end in last for end in _ENDS):
            header, separator, _ = last.partition(_MESSAGE)
            self._prompt_header, self._kind = header, _Kind.HEADER
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
        """Parse the next chunk of text and return the deltas that are certain so far."""
        deltas: list[AnswerDelta] = []
        for chunk in self._scanner.feed(text):
            self._take(chunk.text, chunk.marker, deltas)
        return deltas

    def flush(self, complete: bool = True) -> list[AnswerDelta]:
        """Return the deltas of the buffered remainder, at the end of the text.

        Args:
            complete: Whether the model ended its answer itself; a truncated call is text.
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
            self._read_header(text, marker, deltas)
        elif self._call is not None:
            self._call.append(text)
        elif self._splitter is not None:
            deltas += self._splitter.feed(text)
        elif self._kind is _Kind.REASONING:
            deltas.append(ReasoningDelta(text))
        else:
            self._kind = _Kind.TEXT
            deltas.append(TextDelta(text))

    def _read_header(self, text: str, marker: bool, deltas: list[AnswerDelta]) -> None:
        self._header.append(text)
        if marker and text == _MESSAGE:
            self._begin_message()
        elif self._prompt_header and self._header[0] != _CHANNEL:
            self._lead = (self._lead + text).lstrip()[: len(_RECIPIENT_KEY)]
            if not _RECIPIENT_KEY.startswith(self._lead):
                # The prompt began a message, and the model continues without a channel or recipient.
                self._end(deltas)
                self._kind = _Kind.TEXT

    def _begin_message(self) -> None:
        """Determine the kind of the message from its header."""
        written = "".join(self._header)
        header = self._prompt_header + written
        self._prompt_header, self._header = "", []
        recipient = _RECIPIENT.search(header)
        if self._recipients:
            self._kind = _Kind.REASONING if recipient is not None and recipient[1] == "self" else _Kind.TEXT
            if self._tools is not None and self._kind is _Kind.TEXT:
                self._splitter = ToolCallSplitter(self._tools, self._calls)
            return
        if self._tools is not None and recipient is not None:
            self._kind, self._recipient, self._call = _Kind.CALL, recipient[1], []
            return
        name = _CHANNEL_NAME.search(header)
        self._kind = _Kind.REASONING if name and name[1] == "analysis" else _Kind.TEXT

    def _end(self, deltas: list[AnswerDelta], complete: bool = True) -> None:
        """End the current message; the text after it is text unless a header begins."""
        written = "".join(self._header)
        if self._splitter is not None:
            deltas += self._splitter.flush(complete)
            self._calls = self._splitter.count
        elif self._call is not None and self._tools is not None:
            content = "".join(self._call)
            call = _read_call(self._recipient, content, self._tools) if complete else None
            written = content if call is None else ""
            if call is not None:
                deltas.append(ToolCallDelta(self._calls, call))
                self._calls += 1
        elif _HEADER.fullmatch(written):
            written = ""
        if written:
            deltas.append(TextDelta(written))
        self._kind, self._prompt_header, self._header, self._call, self._splitter = _Kind.BETWEEN, "", [], None, None


def _read_call(recipient: str, content: str, tools: ToolCallFormat) -> ToolCall | None:
    """Return the call of a message; None when its content is not a JSON object."""
    name = recipient.removeprefix("functions.")
    try:
        value = whole_value(content or "{}")
        return tools.completed(Call(name, tools.tools.arguments(name, value)))
    except (NoCallError, MalformedValueError):
        return None


class _CallsInReasoning:
    """Buffers a call in reasoning: it counts as a call only if the model never closes its reasoning.

    Args:
        tools: The format of tool calls.
    """

    def __init__(self, tools: ToolCallFormat) -> None:
        self._tools = tools
        self._openings = {opening for syntax in tools.candidates if not syntax.bare for opening in syntax.openings}
        self._openings |= {marker for syntax in tools.candidates for marker in syntax.around}
        self._reset()

    def _reset(self) -> None:
        self._scanner = MarkerScanner(self._openings)
        self._held = ""
        """The white space before a possible call, and the text since it began."""
        self._splitter: ToolCallSplitter | None = None
        self._calls: list[AnswerDelta] = []

    def feed(self, text: str) -> str:
        """Parse the next chunk of reasoning and return the part that is certainly reasoning."""
        if self._splitter is not None:
            return self._hold(text)
        passed, self._held = self._held, ""
        chunks = self._scanner.feed(text)
        for index, chunk in enumerate(chunks):
            if chunk.marker:
                call = "".join(following.text for following in (*chunks[index:], *self._scanner.flush()))
                self._splitter = ToolCallSplitter(self._tools)
                visible = passed.rstrip()
                self._held = passed[len(visible) :]
                return visible + self._hold(call)
            passed += chunk.text
        visible = passed.rstrip()
        self._held = passed[len(visible) :]
        return visible

    def _hold(self, text: str) -> str:
        self._held += text
        if self._splitter is not None:
            deltas = self._splitter.feed(text)
            if any(isinstance(delta, TextDelta) for delta in deltas):
                return self.release()
            self._calls += deltas
        return ""

    def release(self) -> str:
        """Return the buffered text, as reasoning."""
        if self._splitter is None:
            held, self._held = self._held, ""
            return held + "".join(chunk.text for chunk in self._scanner.flush())
        held = self._held
        self._reset()
        return held

    def close(self, complete: bool) -> list[AnswerDelta]:
        """Return the deltas of the buffered text, at the end of a completion that never closed its reasoning."""
        if self._splitter is not None and complete:
            deltas = [*self._calls, *self._splitter.flush()]
            if any(isinstance(delta, ToolCallDelta) for delta in deltas):
                return [ReasoningDelta(delta.text) if isinstance(delta, TextDelta) else delta for delta in deltas]
        held = self.release()
        return [ReasoningDelta(held)] if held else []


class OutputParser:
    """Parses one completion. The deltas of all chunks, joined, are the parsed completion.

    Args:
        stops: Strings that end it; they match anywhere in the output, also in markup.
        reasoning: The markup of reasoning; None when there is none, or when reasoning stays in the text.
        tools: The format of tool calls; None when the request has no tools.
        prompt_tail: The end of the rendered prompt, which may have opened a block of reasoning.
        forced: Splits the call that a grammar enforces; it replaces ``tools``.
    """

    def __init__(
        self,
        stops: Iterable[str] = (),
        reasoning: ReasoningFormat | None = None,
        tools: ToolCallFormat | None = None,
        prompt_tail: str = "",
        forced: ForcedCallSplitter | None = None,
    ) -> None:
        stops = tuple(stops)
        self._stops = StopSequences(stops)
        self._has_stops = bool(stops)
        self._forced = forced
        self._channels: ChannelParser | None = None
        self._tags: ReasoningSplitter | None = None
        self._tools: ToolCallSplitter | None = None
        self._reasoning_calls: _CallsInReasoning | None = None
        tools = None if forced is not None else tools
        if reasoning is not None and reasoning.style is ReasoningStyle.CHANNELS:
            self._channels = ChannelParser(reasoning, prompt_tail, tools)
            return
        if reasoning is not None:
            self._tags = ReasoningSplitter(reasoning, reasoning.opened_by(prompt_tail))
        if tools is not None:
            self._tools = ToolCallSplitter(tools)
            self._reasoning_calls = _CallsInReasoning(tools) if self._tags is not None else None

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found; text fed afterwards is ignored."""
        return self._stops.stopped

    @property
    def stop_sequence(self) -> str | None:
        """The stop string that was found."""
        return self._stops.found

    @property
    def thinking(self) -> bool:
        """Whether a block of reasoning is open."""
        splitter = self._channels or self._tags
        return splitter is not None and splitter.thinking

    @property
    def answering(self) -> bool:
        """Whether the next text belongs to the answer, and not to reasoning or markup."""
        return self._channels.answering if self._channels is not None else not self.thinking

    @property
    def past_reasoning(self) -> bool:
        """Whether no more reasoning can follow; with channels it always can."""
        return self._channels is None and (self._tags is None or self._tags.past_reasoning)

    @property
    def passes_unchanged(self) -> bool:
        """Whether all further text is returned unchanged, so that parsing can stop."""
        return (
            self._channels is None
            and self._tools is None
            and self._forced is None
            and not self._has_stops
            and (self._tags is None or self._tags.passes_unchanged)
        )

    def feed(self, text: str) -> list[AnswerDelta]:
        """Parse the next chunk of decoded text, which may be empty, and return the deltas that are certain so far."""
        return self._split(self._stops.feed(text)[0])

    def flush(self, complete: bool = True) -> list[AnswerDelta]:
        """Return the deltas of the buffered remainder, at the end of the text.

        Read ``stopped`` afterwards: a stop string may be decided only now.

        Args:
            complete: Whether the model ended its answer itself, and was not cut by a limit or cancelled.
        """
        deltas = self._split(self._stops.flush())
        complete = complete and not self.stopped
        if self._channels is not None:
            for delta in self._channels.flush(complete):
                deltas += self._split_forced_call(delta)
        elif self._tags is not None:
            thinking = self._tags.thinking
            for delta in self._tags.flush():
                deltas += self._split_calls(delta)
            if self._reasoning_calls is not None and thinking:
                deltas += self._reasoning_calls.close(complete)
        if self._tools is not None:
            deltas += self._tools.flush(complete)
        if self._forced is not None:
            deltas += self._forced.flush()
        return _joined(deltas)

    def _split(self, text: str) -> list[AnswerDelta]:
        if not text:
            return []
        if self._channels is not None:
            parsed = self._channels.feed(text)
            return _joined([delta for message in parsed for delta in self._split_forced_call(message)])
        if self._tags is None:
            return self._split_calls(TextDelta(text))
        deltas: list[AnswerDelta] = []
        for delta in self._tags.feed(text):
            deltas += self._split_calls(delta)
        if self._reasoning_calls is not None and not self._tags.thinking and (held := self._reasoning_calls.release()):
            deltas.append(ReasoningDelta(held))
        return _joined(deltas)

    def _split_calls(self, delta: TextDelta | ReasoningDelta) -> list[AnswerDelta]:
        if isinstance(delta, ReasoningDelta):
            text = self._reasoning_calls.feed(delta.text) if self._reasoning_calls is not None else delta.text
            return [ReasoningDelta(text)] if text else []
        held = self._reasoning_calls.release() if self._reasoning_calls is not None else ""
        answer: list[AnswerDelta]
        answer = self._split_forced_call(delta) if self._tools is None else [*self._tools.feed(delta.text)]
        return [ReasoningDelta(held), *answer] if held else answer

    def _split_forced_call(self, delta: AnswerDelta) -> list[AnswerDelta]:
        if self._forced is None or not isinstance(delta, TextDelta):
            return [delta]
        return [*self._forced.feed(delta.text)]


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
