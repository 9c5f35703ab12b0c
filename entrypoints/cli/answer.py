"""Turns a stream of events into an answer, writing it out as it comes when that is asked for.

The answer goes to standard output, since it is data; what the model thinks goes to standard error, since it is talk.
"""

import json
from collections.abc import Iterable

import attrs

from mlxk.application.ports.text_generator import TextStream
from mlxk.domain.conversation import ToolCall
from mlxk.domain.errors import ExecutionError
from mlxk.domain.generation import Finished, FinishReason, ReasoningDelta, TextDelta, ToolCallDelta
from mlxk.domain.grammar import is_json
from mlxk.entrypoints.cli.output import Output


@attrs.frozen
class Answer:
    """A complete answer."""

    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    finished: Finished

    @property
    def finish_reason(self) -> str:
        """Why it ended: calls wait for their results, unless a stop string cut them and they are a part."""
        reason = self.finished.reason
        if reason is not FinishReason.STOP or not self.tool_calls:
            return reason.value
        whole = all(is_json(call.arguments) for call in self.tool_calls)
        return "tool_calls" if whole else FinishReason.LENGTH.value


@attrs.define
class AnswerReader:
    """Reads one stream to its end; what was read so far stays readable when the stream fails."""

    output: Output
    live: bool
    """Whether to write the answer as it comes."""
    show_reasoning: bool
    text: list[str] = attrs.field(factory=list)
    reasoning: list[str] = attrs.field(factory=list)
    calls: dict[int, ToolCall] = attrs.field(factory=dict)

    def read(self, stream: TextStream) -> Answer:
        """Gather the answer.

        Raises:
            MlxkError: Whatever the stream failed with.
        """
        for event in stream:
            match event:
                case TextDelta():
                    self._text(event.text)
                case ReasoningDelta():
                    self._reasoning(event.text)
                case ToolCallDelta():
                    self._call(event)
                case Finished():
                    self._end_line()
                    return Answer("".join(self.text), "".join(self.reasoning), tuple(self.calls.values()), event)
        raise ExecutionError("the answer ended without its last event")

    def _text(self, text: str) -> None:
        if self.live and self.reasoning and not self.text and self.show_reasoning:
            self.output.note("")
        self.text.append(text)
        if self.live:
            self.output.text(text)

    def _reasoning(self, text: str) -> None:
        self.reasoning.append(text)
        if self.live and self.show_reasoning:
            self.output.aside(text)

    def _call(self, delta: ToolCallDelta) -> None:
        known = self.calls.get(delta.index)
        arguments = (known.arguments if known else "") + delta.call.arguments
        self.calls[delta.index] = attrs.evolve(known or delta.call, arguments=arguments)

    def _end_line(self) -> None:
        """End the line of what was written live."""
        if self.live and self.text:
            self.output.line()
        elif self.live and self.reasoning and self.show_reasoning:
            self.output.note("")


def call_line(call: ToolCall) -> str:
    """Return a call that the model makes as one line of JSON."""
    return f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {call.arguments}}}'


def say_notes(output: Output, notes: Iterable[str]) -> None:
    """Tell on standard error what was done otherwise than usual."""
    for note in notes:
        output.note(f"[{note}]")


def say_why_cut(output: Output, finished: Finished, asked: int | None, chatting: bool = False) -> None:
    """Tell on standard error that the answer was cut, and how to get more.

    Args:
        output: Where to tell.
        finished: The answer's end.
        asked: The most tokens that the user wanted; None for as many as fit.
        chatting: Whether limits are set with ``/set`` and not with flags.
    """
    if finished.reason is not FinishReason.LENGTH:
        return
    tokens = finished.usage.completion_tokens
    if asked is not None and tokens >= asked:
        limit, more = "--max-tokens", "Pass a larger --max-tokens to allow more."
        if chatting:
            limit, more = "max_tokens", "Allow more with: /set max_tokens N"
        output.note(f"[Output cut at {tokens} tokens ({limit}). {more}]")
        return
    output.note(
        f"[Output cut at {tokens} tokens: prompt ({finished.usage.prompt_tokens}) and output fill the model's context "
        "window. Shorten the prompt to allow more.]"
    )
