"""The stages of an answer together."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mlxk.domain.formats.output_parser import OutputParser
from mlxk.domain.formats.reasoning import CHANNELS, ReasoningFormat, ReasoningStyle
from mlxk.domain.formats.tool_calls import ToolCallFormat
from mlxk.domain.generation.conversation import ToolCall
from mlxk.domain.generation.request import AnswerDelta, ReasoningDelta, TextDelta, ToolCallDelta

_THINK = ReasoningFormat(ReasoningStyle.TAGS, "<think>", "</think>")
_CALLS = ToolCallFormat("<call>", "</call>", lambda text: (ToolCall(text, "{}"),) if text.isalpha() else ())


def _run(pieces: list[str], stops: tuple[str, ...] = (), tail: str = "", complete: bool = True) -> list[AnswerDelta]:
    stream = OutputParser(stops, _THINK, _CALLS, tail)
    deltas: list[AnswerDelta] = []
    for delta in [each for piece in pieces for each in stream.feed(piece)] + stream.flush(complete):
        last = deltas[-1] if deltas else None
        if isinstance(last, TextDelta) and isinstance(delta, TextDelta):
            deltas[-1] = TextDelta(last.text + delta.text)
        elif isinstance(last, ReasoningDelta) and isinstance(delta, ReasoningDelta):
            deltas[-1] = ReasoningDelta(last.text + delta.text)
        else:
            deltas.append(delta)
    return deltas


def test_reasoning_text_and_calls_come_in_order() -> None:
    text = "hm\n</think>\n\nLet me see.\n<call>add</call>"
    expected = [ReasoningDelta("hm"), TextDelta("Let me see."), ToolCallDelta(0, ToolCall("add", "{}"))]
    assert _run([text], tail="assistant\n<think>\n") == _run(list(text), tail="assistant\n<think>\n") == expected


def test_reasoning_can_come_until_something_visible_was_said_and_in_channels_always() -> None:
    tagged = OutputParser((), _THINK, None, "")
    for piece, past in ((" \n", False), ("<think>hm", False), ("</think>\n", False), ("So", True), ("<think>", True)):
        tagged.feed(piece)
        assert tagged.past_reasoning is past
    channelled = OutputParser((), CHANNELS, None, "")
    channelled.feed("<|channel|>final<|message|>So")
    assert not channelled.past_reasoning
    assert OutputParser().past_reasoning


def test_a_call_inside_reasoning_is_reasoning() -> None:
    assert _run(["<think><call>add</call></think>x"]) == [ReasoningDelta("<call>add</call>"), TextDelta("x")]


def test_a_stop_ends_everything() -> None:
    stream = OutputParser(("END",), _THINK, _CALLS)
    assert stream.feed("<think>a</think>b EN") == [ReasoningDelta("a"), TextDelta("b")]
    assert stream.feed("D<call>add</call>") == []
    assert stream.stopped
    assert stream.flush() == [TextDelta(" ")]


def test_a_call_cut_by_a_stop_is_text() -> None:
    assert _run(["<call>ad|d</call>"], ("|",)) == [TextDelta("<call>ad")]


def test_without_stages_text_passes_at_once() -> None:
    stream = OutputParser()
    assert stream.feed("<think>") == [TextDelta("<think>")]
    assert stream.feed("") == []
    assert stream.flush() == []
    assert not stream.thinking


def test_channels_take_the_place_of_tags_and_calls() -> None:
    stream = OutputParser((), CHANNELS, _CALLS, "<|start|>assistant")
    assert stream.feed("<|channel|>analysis<|message|>hm") == [ReasoningDelta("hm")]
    assert stream.thinking
    assert stream.feed("<|end|><|start|>assistant<|channel|>final<|message|>42") == [TextDelta("42")]
    assert stream.flush() == []


@settings(max_examples=1000, deadline=None)
@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<call>", "</call>", "<", "add", "\n", " ", "ST", "OP", ""])),
    st.sampled_from([(), ("STOP",), ("OP", "a<"), ("k>",)]),
    st.sampled_from(["", "<think>\n"]),
    st.booleans(),
)
def test_a_stream_is_the_whole_answer_however_it_is_cut(
    pieces: list[str], stops: tuple[str, ...], tail: str, complete: bool
) -> None:
    whole = "".join(pieces)
    assert _run(pieces, stops, tail, complete) == _run(list(whole), stops, tail, complete)
    assert _run(pieces, stops, tail, complete) == _run([whole], stops, tail, complete)
