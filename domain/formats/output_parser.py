"""The answer as its readers want it: decoded text goes in piece by piece, reasoning, text and tool calls come out.

Composes the stages in their one order: stop sequences, then reasoning, then tool calls. Turning tokens into text comes
before; who shows or hides what comes after. A whole answer is its stream, joined.
"""

from collections.abc import Iterable

from mlxk.domain.formats.harmony import HarmonyParser
from mlxk.domain.formats.reasoning import ReasoningFormat, ReasoningSplitter, ReasoningStyle
from mlxk.domain.formats.scanner import StopSequences
from mlxk.domain.formats.tool_calls import ToolCallFormat, ToolCallSplitter
from mlxk.domain.generation.request import AnswerDelta, ReasoningDelta, TextDelta


class OutputParser:
    """One answer.

    Args:
        stops: Strings that end it; they are looked for in everything the model writes, its markers included.
        reasoning: How the model marks its reasoning; None when it does not, or when it is to stay in the text.
        tools: How it writes calls; None when no tools are on offer.
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
        """Whether a stop string was found; what is fed afterwards is ignored."""
        return self._stops.stopped

    @property
    def thinking(self) -> bool:
        """Whether the model is in the middle of its reasoning."""
        splitter = self._channels or self._tags
        return splitter is not None and splitter.thinking

    @property
    def answering(self) -> bool:
        """Whether what comes next belongs to the answer itself, neither to reasoning nor to the markup around it."""
        return self._channels.answering if self._channels is not None else not self.thinking

    @property
    def past_reasoning(self) -> bool:
        """Whether no reasoning can come any more; in channels it always can."""
        return self._channels is None and (self._tags is None or self._tags.past_reasoning)

    def feed(self, text: str) -> list[AnswerDelta]:
        """Take the next piece of decoded text, which may be empty, and return what is decided by now."""
        return self._split(self._stops.feed(text)[0])

    def flush(self, complete: bool = True) -> list[AnswerDelta]:
        """Return what was held back, once the text has ended.

        Look at ``stopped`` afterwards: a stop string may have been decided only now.

        Args:
            complete: Whether the model ended its turn itself, rather than being cut by a limit or given up.
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
    """Join neighbours of one kind."""
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
