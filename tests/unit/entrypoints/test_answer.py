"""Answers of the command line: why they ended, and what is printed of them where."""

import io

import attrs
import pytest

from mlxk.application.text_streams import ImageTableDelta, QueuedTextStream
from mlxk.domain.errors import ExecutionError
from mlxk.domain.generation.conversation import ToolCall
from mlxk.domain.generation.request import (
    Finished,
    FinishReason,
    GenerationEvent,
    PromptProgress,
    ReasoningDelta,
    TextDelta,
    Timings,
    ToolCallDelta,
    Usage,
)
from mlxk.entrypoints.cli.answer import AnswerReader, CollectedAnswer, interrupted, print_truncation
from mlxk.entrypoints.cli.output import Output

CALL, PART = ToolCall("add", '{"a": 1}'), ToolCall("add", '{"a')


@pytest.mark.parametrize(
    ("reason", "calls", "expected"),
    [
        (FinishReason.STOP, (), "stop"),
        (FinishReason.STOP, (CALL,), "tool_calls"),
        (FinishReason.STOP, (CALL, PART), "length"),
        (FinishReason.LENGTH, (CALL,), "length"),
        (FinishReason.CANCELLED, (CALL,), "cancelled"),
    ],
)
def test_calls_that_are_whole_wait_for_their_results(
    reason: FinishReason, calls: tuple[ToolCall, ...], expected: str
) -> None:
    assert CollectedAnswer("", "", calls, Finished(reason, Usage(1, 1, 0), Timings(0, 0, 0))).finish_reason == expected


END = Finished(FinishReason.STOP, Usage(1, 1, 0), Timings(0, 0, 0))
CHUNKS: tuple[GenerationEvent, ...] = (
    ImageTableDelta("table 1\n\n"),
    ReasoningDelta("thought "),
    ReasoningDelta("one"),
    TextDelta("answer 1"),
    ImageTableDelta("\n\ntable 2\n\n"),
    ReasoningDelta("thought two"),
    TextDelta("answer 2"),
)


class OneScreen:
    """Both streams of a program on one terminal."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.shown = io.StringIO()
        self.output = Output(as_json=as_json, color=False, stdout=self.shown, stderr=self.shown)


def read(reader: AnswerReader, *events: GenerationEvent) -> CollectedAnswer:
    """Read a stream of these events."""
    stream = QueuedTextStream()
    for event in (*events, END):
        stream.put(event)
    return reader.read(stream)


@pytest.mark.parametrize(
    ("events", "shown"),
    [
        ((TextDelta("Hi"), TextDelta(" there")), "Hi there\n"),
        ((ReasoningDelta("Hm"), ReasoningDelta("."), TextDelta("Hi")), "Hm.\nHi\n"),
        ((ReasoningDelta("Hm."),), "Hm.\n"),
        ((ReasoningDelta("Hm."), ToolCallDelta(0, CALL)), "Hm.\n"),
        ((), ""),
        (CHUNKS, "table 1\n\nthought one\nanswer 1\n\ntable 2\n\nthought two\nanswer 2\n"),
        (CHUNKS[:-1], "table 1\n\nthought one\nanswer 1\n\ntable 2\n\nthought two\n"),
    ],
    ids=["text", "reasoning and text", "reasoning", "reasoning and a call", "nothing", "images", "images cut short"],
)
def test_on_a_terminal_reasoning_has_lines_of_its_own(events: tuple[GenerationEvent, ...], shown: str) -> None:
    screen = OneScreen()
    read(AnswerReader(screen.output, live=True, show_reasoning=True), *events)
    assert screen.shown.getvalue() == shown


def test_reasoning_that_is_not_shown_leaves_no_line() -> None:
    screen = OneScreen()
    answer = read(AnswerReader(screen.output, live=True, show_reasoning=False), *CHUNKS)
    assert screen.shown.getvalue() == "table 1\n\nanswer 1\n\ntable 2\n\nanswer 2\n"
    assert answer.reasoning == "thought one\n\nthought two"


@pytest.mark.parametrize(("as_json", "shown"), [(False, "table 1\n\nanswer 1\n\ntable 2\n\n"), (True, "")])
def test_without_a_terminal_the_answers_to_finished_chunks_are_printed(as_json: bool, shown: str) -> None:
    screen = OneScreen(as_json=as_json)
    reader = AnswerReader(screen.output, live=False, show_reasoning=True)
    answer = read(reader, *CHUNKS)
    assert (screen.shown.getvalue(), answer.text) == (shown, "table 1\n\nanswer 1\n\ntable 2\n\nanswer 2")
    assert shown + reader.unprinted == answer.text


def test_calls_are_put_together_and_progress_is_no_part_of_the_answer() -> None:
    stream = QueuedTextStream()
    for event in (
        PromptProgress(1, 2),
        ToolCallDelta(0, ToolCall("add", '{"a"', "call_0")),
        ToolCallDelta(0, ToolCall("", ": 1}")),
        ToolCallDelta(1, ToolCall("end", "{}", "call_1")),
        END,
    ):
        stream.put(event)
    answer = AnswerReader(OneScreen().output, live=True, show_reasoning=True).read(stream)
    assert answer.tool_calls == (ToolCall("add", '{"a": 1}', "call_0"), ToolCall("end", "{}", "call_1"))
    assert (answer.text, answer.finished) == ("", END)


def test_what_was_read_before_a_failure_is_there() -> None:
    reader, stream = AnswerReader(OneScreen().output, live=False, show_reasoning=True), QueuedTextStream()
    stream.put("half an")
    stream.put(ExecutionError("no memory"))
    with pytest.raises(ExecutionError, match="no memory"):
        reader.read(stream)
    assert reader.unprinted == "half an"


def test_an_interrupt_prints_what_is_not_printed_yet_or_puts_all_into_the_document() -> None:
    screen, document = OneScreen(), OneScreen(as_json=True)
    error = interrupted(screen.output, "half an")
    assert (screen.shown.getvalue(), error.message, error.detail) == ("half an\n", "interrupted", None)
    error = interrupted(document.output, "half an")
    assert (document.shown.getvalue(), error.message, error.detail) == (*("", "interrupted", {"response": "half an"}),)


FULL = attrs.evolve(END, reason=FinishReason.LENGTH, usage=Usage(90, 10), window_full=True)
CUT = attrs.evolve(FULL, window_full=False)
WINDOW = "[Output cut at 10 tokens: prompt (90) and output fill the model's context window. "


@pytest.mark.parametrize(
    ("end", "limit", "chatting", "said"),
    [
        (END, None, False, []),
        (CUT, 10, False, ["[Output cut at 10 tokens (--max-tokens). Pass a larger --max-tokens to allow more.]"]),
        (CUT, None, True, ["[Output cut at 10 tokens (max_tokens). Allow more with: /set max_tokens N]"]),
        (FULL, None, False, [f"{WINDOW}Shorten the prompt to allow more.]"]),
        (FULL, 11, True, [f"{WINDOW}Make room with: /drop or /summarize]"]),
        (FULL, 10, False, ["[Output cut at 10 tokens (--max-tokens). Pass a larger --max-tokens to allow more.]"]),
        (
            attrs.evolve(CUT, parts=(END, FULL, CUT)),
            None,
            False,
            [
                f"{WINDOW}Shorten the prompt to allow more.]",
                "[Output cut at 10 tokens (--max-tokens). Pass a larger --max-tokens to allow more.]",
            ],
        ),
    ],
)
def test_what_cut_an_answer_and_how_to_allow_more_is_said(
    end: Finished, limit: int | None, chatting: bool, said: list[str]
) -> None:
    screen = OneScreen()
    print_truncation(screen.output, end, limit, chatting)
    assert screen.shown.getvalue().splitlines() == said
