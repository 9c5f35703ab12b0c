"""Calls that were forced, as they are shown."""

import pytest

from mlxk.domain.generation.conversation import ToolCall
from mlxk.domain.generation.request import (
    Finished,
    FinishReason,
    GenerationEvent,
    TextDelta,
    Timings,
    ToolCallDelta,
    Usage,
)
from mlxk.entrypoints.http.openai.chat.renderer import ForcedCallRewriter

END = Finished(FinishReason.STOP, Usage(1, 1, 0), Timings(0, 0, 0))


def shown(name: str | None, text: str) -> list[GenerationEvent]:
    """Return what is shown of an answer that comes a character at a time, the ids left out."""
    rewriter = ForcedCallRewriter(name)
    events = [event for each in [*map(TextDelta, text), END] for event in rewriter.rewrite(each)]
    assert all(not isinstance(each, ToolCallDelta) or bool(each.call.id) == bool(each.call.name) for each in events)
    return [
        ToolCallDelta(each.index, ToolCall(each.call.name, each.call.arguments))
        if isinstance(each, ToolCallDelta)
        else each
        for each in events
    ]


@pytest.mark.parametrize("written", ['{"a": {}}', "{}", '{"a": "}'])
def test_the_arguments_are_shown_as_they_are_written(written: str) -> None:
    expected = [ToolCallDelta(0, ToolCall("f", "")), *(ToolCallDelta(0, ToolCall("", each)) for each in written), END]
    assert shown("f", written) == expected
    assert shown(None, '{"name": "f", "arguments": ' + written) == expected
    if not written.endswith('"}'):
        assert shown(None, '{"name": "f", "arguments": ' + written + "}") == expected


def test_a_call_in_another_order_is_shown_when_it_is_complete() -> None:
    assert shown(None, '{"arguments": {}, "name": "f"}') == [ToolCallDelta(0, ToolCall("f", "{}")), END]


def test_a_call_that_was_cut_before_its_arguments_is_text() -> None:
    assert shown(None, '{"name": "f"') == [TextDelta('{"name": "f"'), END]
