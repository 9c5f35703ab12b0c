"""Answers of the command line: why they ended."""

import pytest

from mlxk.domain.generation.conversation import ToolCall
from mlxk.domain.generation.request import Finished, FinishReason, Timings, Usage
from mlxk.entrypoints.cli.answer import CollectedAnswer

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
