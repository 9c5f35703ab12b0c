"""One answer on the command line: events to text, printed as they arrive or at the end."""

import argparse
import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import attrs

from mlxk.application.ports.text_generator import TextStream
from mlxk.domain.errors import ExecutionError, InterruptedRunError
from mlxk.domain.generation.conversation import ToolCall
from mlxk.domain.generation.grammar import is_json
from mlxk.domain.generation.request import Finished, FinishReason, ReasoningDelta, TextDelta, ToolCallDelta
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import Output

if TYPE_CHECKING:
    from mlxk.application.ports.text_generator import TextStream


@attrs.frozen
class CollectedAnswer:
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

    def read(self, stream: TextStream) -> CollectedAnswer:
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
                    return CollectedAnswer(
                        "".join(self.text), "".join(self.reasoning), tuple(self.calls.values()), event
                    )
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


def answer(arguments: argparse.Namespace, prompt: str, start: "Callable[[], TextStream]", output: Output) -> int:
    """Answer one prompt.

    Args:
        arguments: The command line.
        prompt: What is asked, for the record.
        start: Starts the answer; may take as long as loading a model takes.
        output: Where to print.

    Raises:
        InterruptedRunError: The user interrupted; what was generated until then is delivered.
        MlxkError: Whatever the answer failed with.
    """
    from mlxk.entrypoints.cli.progress import Spinner

    live = output.interactive and not arguments.no_stream and not output.as_json
    reader = AnswerReader(output, live=live, show_reasoning=not arguments.no_reasoning)
    try:
        with Spinner(output, "Loading the model") as spinner:
            stream = start()
            spinner.stop()
        with stream:
            found = reader.read(stream)
    except KeyboardInterrupt:
        raise _interrupted(output, "".join(reader.text), live) from None
    _print(arguments, output, prompt, found, live)
    return DONE


def _interrupted(output: Output, text: str, live: bool) -> InterruptedRunError:
    """Deliver what was generated until the user interrupted: as data, or within the one JSON document."""
    if output.as_json:
        return InterruptedRunError("interrupted", detail={"response": text})
    output.line("" if live else text)
    return InterruptedRunError("interrupted")


def _print(arguments: argparse.Namespace, output: Output, prompt: str, answer: "CollectedAnswer", live: bool) -> None:

    if output.as_json:
        output.document("run", answer_json(arguments.model, prompt, answer, not arguments.no_reasoning))
        return
    if not live:
        if answer.reasoning and not arguments.no_reasoning:
            output.note(answer.reasoning)
        if answer.text or not answer.tool_calls:
            output.line(answer.text)
    for call in answer.tool_calls:
        output.line(call_line(call))
    say_why_cut(output, answer.finished, arguments.max_tokens)
    say_notes(output, answer.finished.notes)


def answer_json(reference: str, prompt: str, given: CollectedAnswer, show_reasoning: bool) -> dict[str, object]:
    """Return the data of ``run``; reasoning and tool calls only when there are any."""
    finished = given.finished
    usage, timings = finished.usage, finished.timings
    fields: dict[str, object] = {
        "model": reference,
        "prompt": prompt,
        "response": given.text,
        "finish_reason": given.finish_reason,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
            "cached_tokens": usage.cached_tokens,
        },
        "timings": {
            "load_seconds": round(timings.load_seconds, 4),
            "prompt_seconds": round(timings.prompt_seconds, 4),
            "generation_seconds": round(timings.generation_seconds, 4),
            "tokens_per_second": _rate(usage.completion_tokens, timings.generation_seconds),
        },
    }
    if given.reasoning and show_reasoning:
        fields["reasoning"] = given.reasoning
    if given.tool_calls:
        fields["tool_calls"] = [
            {"id": call.id or f"call_{index}", "name": call.name, "arguments": call.arguments}
            for index, call in enumerate(given.tool_calls)
        ]
    if finished.notes:
        fields["notes"] = list(finished.notes)
    return fields


def _rate(tokens: int, seconds: float) -> float | None:
    return round(tokens / seconds, 2) if seconds > 0 else None
