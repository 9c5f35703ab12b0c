"""Prints a completion on the command line, as it arrives or at the end, with further rounds after tool calls."""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence

import attrs

from mlxk.application.ports.text_generator import TextStream
from mlxk.application.text_streams import ImageTableDelta
from mlxk.domain.errors import ExecutionError, InterruptedRunError
from mlxk.domain.formats.regions import regions_in
from mlxk.domain.generation.conversation import ToolCall
from mlxk.domain.generation.grammar import is_json
from mlxk.domain.generation.request import (
    AnswerDelta,
    Finished,
    FinishReason,
    PromptProgress,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    predictions,
)
from mlxk.entrypoints.cli.output import DONE, Output
from mlxk.entrypoints.cli.progress import Spinner
from mlxk.entrypoints.cli.tool_calls import ToolRounds


@attrs.frozen
class CollectedAnswer:
    """A complete completion, joined from its events."""

    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    finished: Finished

    @property
    def finish_reason(self) -> str:
        """The finish reason; ``tool_calls`` unless a stop string cut the arguments of a call."""
        reason = self.finished.reason
        if reason is not FinishReason.STOP or not self.tool_calls:
            return reason.value
        complete = all(is_json(call.arguments) for call in self.tool_calls)
        return "tool_calls" if complete else FinishReason.LENGTH.value


@attrs.define
class AnswerReader:
    """Collects and prints one stream; what was read remains available when the stream fails."""

    output: Output
    live: bool
    """Whether to print text as it arrives; otherwise ``read`` prints only answers about image chunks but the last."""
    show_reasoning: bool
    text: list[str] = attrs.field(factory=list)
    reasoning: list[str] = attrs.field(factory=list)
    calls: dict[int, ToolCall] = attrs.field(factory=dict)
    _printed: int = 0
    """Number of printed items of ``text``."""
    _in_reasoning: bool = False
    """Whether the last line on standard error is reasoning without its end."""

    @property
    def unprinted(self) -> str:
        """The text that was read and not printed yet."""
        return "".join(self.text[self._printed :])

    def read(self, stream: TextStream) -> CollectedAnswer:
        """Collect the completion.

        Raises:
            MlxkError: The stream failed.
        """
        spinner = Spinner(self.output, "Reading the prompt")
        try:
            for event in stream:
                if isinstance(event, PromptProgress):
                    spinner.show(f"Reading the prompt: {event.done:,} of {event.total:,} tokens")
                    continue
                spinner.stop()
                if isinstance(event, Finished):
                    self._end_line()
                    text, reasoning = "".join(self.text), "".join(self.reasoning)
                    return CollectedAnswer(text, reasoning, tuple(self.calls.values()), event)
                self._take(event)
        finally:
            spinner.stop()
        raise ExecutionError("the answer ended without its last event")

    def _take(self, event: AnswerDelta) -> None:
        match event:
            case ImageTableDelta():
                self._next_chunk(event.text)
            case TextDelta():
                self._text(event.text)
            case ReasoningDelta():
                self._reasoning(event.text)
            case ToolCallDelta():
                self._call(event)

    def _next_chunk(self, table: str) -> None:
        """Print the answer to the finished chunk of images, and the metadata table of the next chunk."""
        if self.reasoning:
            self.reasoning.append("\n\n")
        self._end_reasoning()
        self.text.append(table)
        if not self.output.as_json:
            self._print()

    def _text(self, text: str) -> None:
        self._end_reasoning()
        self.text.append(text)
        if self.live:
            self._print()

    def _print(self) -> None:
        self.output.text(self.unprinted)
        self._printed = len(self.text)

    def _reasoning(self, text: str) -> None:
        self.reasoning.append(text)
        if self.live and self.show_reasoning:
            self.output.dimmed(text)
            self._in_reasoning = True

    def _end_reasoning(self) -> None:
        """End the line of reasoning printed as it arrived."""
        if self._in_reasoning:
            self.output.note("")
            self._in_reasoning = False

    def _call(self, delta: ToolCallDelta) -> None:
        known = self.calls.get(delta.index)
        arguments = (known.arguments if known else "") + delta.call.arguments
        self.calls[delta.index] = attrs.evolve(known or delta.call, arguments=arguments)

    def _end_line(self) -> None:
        """End the line of text or reasoning printed as it arrived."""
        if self.live and self.text and not self._in_reasoning:
            self.output.line()
        self._end_reasoning()


def call_line(call: ToolCall) -> str:
    """Return a tool call as one line of JSON."""
    return f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {call.arguments}}}'


def print_notes(output: Output, notes: Iterable[str]) -> None:
    """Print notes about the completion on standard error."""
    for note in notes:
        output.note(f"[{note}]")


def print_truncation(output: Output, finished: Finished, max_tokens: int | None, chatting: bool = False) -> None:
    """Print on standard error that a limit cut the completion, and how to raise it; for each chunk of images.

    Args:
        output: Where to print.
        finished: The end of the completion.
        max_tokens: The token limit that the user set; None for the remainder of the context window.
        chatting: Whether the advice names chat commands instead of flags.
    """
    for end in finished.parts or (finished,):
        if end.reason is not FinishReason.LENGTH:
            continue
        tokens = end.usage.completion_tokens
        if not end.window_full or (max_tokens is not None and tokens >= max_tokens):
            limit, more = "--max-tokens", "Pass a larger --max-tokens to allow more."
            if chatting:
                limit, more = "max_tokens", "Allow more with: /set max_tokens N"
            output.note(f"[Output cut at {tokens} tokens ({limit}). {more}]")
            continue
        more = "Make room with: /drop or /summarize" if chatting else "Shorten the prompt to allow more."
        output.note(
            f"[Output cut at {tokens} tokens: prompt ({end.usage.prompt_tokens}) and output fill the model's context "
            f"window. {more}]"
        )


def answer(
    arguments: argparse.Namespace,
    prompt: str,
    start: Callable[[], Sequence[TextStream]],
    output: Output,
    activity: str = "Loading the model",
    rounds: ToolRounds | None = None,
) -> int:
    """Print the completion of one prompt.

    Args:
        arguments: The command line.
        prompt: The prompt, for the JSON document.
        start: Starts one stream, of the conversation as it is at the time of the call; may load the model.
        output: Where to print.
        activity: The spinner's text while the stream starts.
        rounds: Executes tool calls; each round that has results is followed by another completion. None without tools.

    Raises:
        InterruptedRunError: The user interrupted; the text generated so far is printed.
        MlxkError: The completion failed; the answers to finished chunks of images are printed.
    """
    has_results = True
    while has_results:
        completion, unprinted = _completion(arguments, start, output, activity)
        if not _is_live(arguments, output) and not output.as_json:
            _print_whole(arguments, output, completion, unprinted)
        try:
            has_results = rounds is not None and rounds.add(
                completion.text, completion.reasoning, completion.tool_calls
            )
        except KeyboardInterrupt:
            if output.as_json:
                raise interrupted(output, completion.text) from None
            raise
        activity = "Reading the results"
    if output.as_json:
        fields = answer_json(arguments.model, prompt, completion, arguments.reasoning is not False)
        output.document(
            "run", {**fields, "tool_results": rounds.toolbox.record} if rounds and rounds.toolbox else fields
        )
        return DONE
    for call in completion.tool_calls:
        output.line(call_line(call))
    print_truncation(output, completion.finished, arguments.max_tokens)
    print_notes(output, completion.finished.notes)
    if arguments.verbose:
        output.note(f"[{speed(completion.finished)}]")
    return DONE


def _print_whole(arguments: argparse.Namespace, output: Output, completion: CollectedAnswer, unprinted: str) -> None:
    """Print a completion that was not printed as it arrived."""
    if completion.reasoning and arguments.reasoning is not False:
        output.note(completion.reasoning)
    if completion.text or not completion.tool_calls:
        output.line(unprinted)


def _is_live(arguments: argparse.Namespace, output: Output) -> bool:
    """Whether to print text as it arrives."""
    return output.interactive and arguments.stream is not False and not output.as_json


def _completion(
    arguments: argparse.Namespace, start: Callable[[], Sequence[TextStream]], output: Output, activity: str
) -> tuple[CollectedAnswer, str]:
    """Return one completion, and the part of its text that is not printed yet."""
    reader = AnswerReader(output, live=_is_live(arguments, output), show_reasoning=arguments.reasoning is not False)
    try:
        with Spinner(output, activity) as spinner:
            (stream,) = start()
            spinner.stop()
        with stream:
            completion = reader.read(stream)
    except KeyboardInterrupt:
        raise interrupted(output, "".join(reader.text) if output.as_json else reader.unprinted) from None
    return completion, reader.unprinted


def speed(finished: Finished) -> str:
    """Return counts of tokens and the speed of generation, on one line."""
    usage, timings = finished.usage, finished.timings
    rate = usage.completion_tokens / timings.generation_seconds if timings.generation_seconds > 0 else 0.0
    cached = f", {usage.cached_tokens} cached" if usage.cached_tokens else ""
    proposed = usage.accepted_prediction_tokens + usage.rejected_prediction_tokens
    drafted = f"; {usage.accepted_prediction_tokens} of {proposed} drafted tokens right" if proposed else ""
    return (
        f"{usage.completion_tokens} tokens, {rate:.1f} tokens/s; prompt {usage.prompt_tokens} tokens{cached}{drafted}"
    )


def interrupted(output: Output, text: str) -> InterruptedRunError:
    """Print the text generated before an interrupt, or put it into the JSON document; return the error to raise.

    Args:
        output: Where to print.
        text: The text that is not printed yet; all text for JSON.
    """
    if output.as_json:
        return InterruptedRunError("interrupted", detail={"response": text})
    output.line(text)
    return InterruptedRunError("interrupted")


def answer_json(reference: str, prompt: str, completion: CollectedAnswer, show_reasoning: bool) -> dict[str, object]:
    """Return the data of ``run``; reasoning, tool calls and regions of images only when there are any."""
    finished = completion.finished
    usage, timings = finished.usage, finished.timings
    fields: dict[str, object] = {
        "model": reference,
        "prompt": prompt,
        "response": completion.text,
        "finish_reason": completion.finish_reason,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
            "cached_tokens": usage.cached_tokens,
            **predictions((usage,)),
        },
        "timings": {
            "load_seconds": round(timings.load_seconds, 4),
            "prompt_seconds": round(timings.prompt_seconds, 4),
            "generation_seconds": round(timings.generation_seconds, 4),
            "tokens_per_second": _rate(usage.completion_tokens, timings.generation_seconds),
        },
    }
    if completion.reasoning and show_reasoning:
        fields["reasoning"] = completion.reasoning
    if completion.tool_calls:
        fields["tool_calls"] = [
            {"id": call.id or f"call_{index}", "name": call.name, "arguments": call.arguments}
            for index, call in enumerate(completion.tool_calls)
        ]
    regions = regions_in(completion.text)
    if regions:
        fields["regions"] = [
            {"label": region.label, "kind": region.kind, "points": [list(point) for point in region.points]}
            for region in regions
        ]
    if finished.notes:
        fields["notes"] = list(finished.notes)
    return fields


def _rate(tokens: int, seconds: float) -> float | None:
    return round(tokens / seconds, 2) if seconds > 0 else None
