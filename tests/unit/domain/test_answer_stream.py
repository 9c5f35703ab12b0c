"""The stages of an answer together."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from mlxk.domain.formats.output_parser import OutputParser
from mlxk.domain.formats.reasoning import CHANNELS, ReasoningFormat, ReasoningStyle
from mlxk.domain.formats.tool_arguments import Tools
from mlxk.domain.formats.tool_calls import ForcedCallSplitter, ToolCallFormat
from mlxk.domain.generation.conversation import ToolCall
from mlxk.domain.generation.request import AnswerDelta, ReasoningDelta, TextDelta, ToolCallDelta

_THINK = ReasoningFormat(ReasoningStyle.TAGS, "<think>", "</think>")
_CALL = '<tool_call>{"name": "add"}</tool_call>'
_CALLS = ToolCallFormat((), Tools([json.dumps({"type": "function", "function": {"name": "add"}})]), lambda: "id")
_ADD = ToolCallDelta(0, ToolCall("add", "{}", "id"))


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
    text = f"hm\n</think>\n\nLet me see.\n{_CALL}"
    expected = [ReasoningDelta("hm"), TextDelta("Let me see."), _ADD]
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
    assert _run([f"<think>{_CALL}</think>x"]) == [ReasoningDelta(_CALL), TextDelta("x")]
    assert _run(list(f"<think>{_CALL}, or not")) == [ReasoningDelta(f"{_CALL}, or not")]


def test_a_call_at_the_end_of_reasoning_that_is_never_closed_is_a_call() -> None:
    for pieces in ([f"<think>I call.\n{_CALL}"], list(f"<think>I call.\n{_CALL}\n")):
        assert _run(pieces) == [ReasoningDelta("I call."), _ADD]
    assert _run([f"<think>I call.\n{_CALL}"], complete=False) == [ReasoningDelta(f"I call.\n{_CALL}")]


def test_a_call_that_a_grammar_enforces_streams_its_arguments() -> None:
    parser = OutputParser((), _THINK, None, "", ForcedCallSplitter("add", "id"))
    assert parser.feed("<think>hm</think>\n\n") == [ReasoningDelta("hm")]
    assert parser.feed('{"a": ') == [
        ToolCallDelta(0, ToolCall("add", "", "id")),
        ToolCallDelta(0, ToolCall("", '{"a": ')),
    ]
    assert parser.feed("1}") == [ToolCallDelta(0, ToolCall("", "1}"))]
    assert parser.flush() == []
    chosen = OutputParser((), None, None, "", ForcedCallSplitter(None, "id"))
    text = '{"name": "a\\"b", "arguments": {"a": "}"}}'
    deltas = [delta for character in text for delta in chosen.feed(character)] + chosen.flush()
    assert deltas[0] == ToolCallDelta(0, ToolCall('a"b', "", "id"))
    assert "".join(delta.call.arguments for delta in deltas if isinstance(delta, ToolCallDelta)) == '{"a": "}"}'
    cut = OutputParser((), None, None, "", ForcedCallSplitter(None, "id"))
    assert [*cut.feed('{"name": "a'), *cut.flush()] == [TextDelta('{"name": "a')]


def test_a_stop_ends_everything() -> None:
    stream = OutputParser(("END",), _THINK, _CALLS)
    assert stream.feed("<think>a</think>b EN") == [ReasoningDelta("a"), TextDelta("b")]
    assert stream.feed(f"D{_CALL}") == []
    assert stream.stopped
    assert stream.flush() == [TextDelta(" ")]


def test_a_call_cut_by_a_stop_is_text_without_its_marker() -> None:
    assert _run(['<tool_call>{"name": "a|dd"}'], ("|",)) == [TextDelta('{"name": "a')]


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


def test_what_a_channel_still_holds_at_the_end_belongs_to_its_message() -> None:
    stream = OutputParser((), CHANNELS, _CALLS, "<|start|>assistant")
    assert stream.feed("<|channel|>final<|message|>42 <|en") == [TextDelta("42 ")]
    assert stream.flush() == [TextDelta("<|en")]
    forced = OutputParser((), CHANNELS, None, "<|start|>assistant", ForcedCallSplitter("add", "id"))
    forced.feed('<|channel|>final<|message|>{"a": "<')
    assert forced.flush() == [ToolCallDelta(0, ToolCall("", "<"))]


_PIECES = ["<tool_call>", "</tool_call>", '{"name"', ': "add"}', "{}", "<function=add>", "</function>", "[add(", ")]"]


@settings(max_examples=1000, deadline=None)
@given(
    st.lists(st.sampled_from(["<think>", "</think>", *_PIECES, "<", "\n", " ", "ST", "OP", ""])),
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


def test_parsing_may_stop_only_where_nothing_can_be_found_any_more() -> None:
    assert OutputParser().passes_unchanged
    forced = OutputParser(forced=ForcedCallSplitter("add", "id"))
    for parser in (forced, OutputParser(["end"]), OutputParser(tools=_CALLS), OutputParser(reasoning=CHANNELS)):
        parser.feed("Let me ")
        assert not parser.passes_unchanged
    tagged = OutputParser(reasoning=_THINK)
    found = []
    for piece in ("<think>hm", "</think>", "So", " it is"):
        tagged.feed(piece)
        found.append(tagged.passes_unchanged)
    assert found == [False, False, True, True]


def test_who_is_being_spoken_to_is_known_at_every_piece() -> None:
    for parser, reasons, answers in (
        (OutputParser(reasoning=_THINK), "<think>hm", "</think>So"),
        (OutputParser(reasoning=CHANNELS), "<|channel|>analysis<|message|>hm", "<|end|><|channel|>final<|message|>So"),
    ):
        parser.feed(reasons)
        assert (parser.thinking, parser.answering) == (True, False)
        parser.feed(answers)
        assert (parser.thinking, parser.answering) == (False, True)
    assert (OutputParser().thinking, OutputParser().answering) == (False, True)
