"""Channelled answers."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxk.domain.formats.output_parser import ChannelParser
from mlxk.domain.formats.reasoning import CHANNELS, RECIPIENTS, ReasoningFormat
from mlxk.domain.formats.tool_arguments import Tools
from mlxk.domain.formats.tool_calls import ToolCallFormat
from mlxk.domain.generation.request import ReasoningDelta, TextDelta, ToolCallDelta

_TAIL = "hello<|end|><|start|>assistant"
_ANALYSIS = "<|channel|>analysis<|message|>hm<|end|>"
_FINAL = "<|start|>assistant<|channel|>final<|message|>42"
_CALL = "<|start|>assistant<|channel|>commentary to=functions.add <|constrain|>json<|message|>{}"


_TOOLS = ToolCallFormat((), Tools([json.dumps({"type": "function", "function": {"name": "add"}})]), lambda: "id")


def _split(
    pieces: list[str],
    tail: str = _TAIL,
    tools: ToolCallFormat | None = _TOOLS,
    complete: bool = True,
    style: ReasoningFormat = CHANNELS,
) -> tuple[str, str, list[str]]:
    splitter = ChannelParser(style, tail, tools)
    deltas = [delta for piece in pieces for delta in splitter.feed(piece)] + splitter.flush(complete)
    return (
        "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta)),
        "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)),
        [f"{delta.index} {delta.call.name}" for delta in deltas if isinstance(delta, ToolCallDelta)],
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (_ANALYSIS + _FINAL, ("hm", "42", [])),
        (_ANALYSIS + _FINAL + "<|return|>", ("hm", "42", [])),
        (_ANALYSIS + _CALL, ("hm", "", ["0 add"])),
        (_ANALYSIS + _CALL + "<|call|>" + _CALL, ("hm", "", ["0 add", "1 add"])),
        (" to=functions.add<|channel|>commentary json<|message|>{}", ("", "", ["0 add"])),
        ("<|channel|>commentary<|message|>Let me see.<|end|>" + _CALL, ("", "Let me see.", ["0 add"])),
        ("<|channel|>final<|message|>a<b<|x|>c", ("", "a<b<|x|>c", [])),
        ("<|channel|>analysis<|message|>never ended", ("never ended", "", [])),
        ("<|channel|>analysis<|message|>a<|start|>assistant<|channel|>final<|message|>b", ("a", "b", [])),
        ("A plain answer.", ("", "A plain answer.", [])),
        ("to be or not", ("", "to be or not", [])),
        (_ANALYSIS + "<|start|>assi", ("hm", "", [])),
        (_ANALYSIS + "<|start|>assistant<|channel|>fi", ("hm", "", [])),
        (_ANALYSIS + _CALL + "}", ("hm", "{}}", [])),
        (_ANALYSIS + "plain", ("hm", "plain", [])),
        ("", ("", "", [])),
    ],
)
def test_channels_are_told_apart(text: str, expected: tuple[str, str, list[str]]) -> None:
    assert _split([text]) == _split(list(text)) == expected


@pytest.mark.parametrize(("text", "expected"), [("{}", ("", "", ["0 add"])), ("oops", ("", "oops", []))])
def test_the_header_of_a_call_in_the_prompt_is_no_answer(text: str, expected: tuple[str, str, list[str]]) -> None:
    tail = f"{_TAIL}<|channel|>commentary to=functions.add<|message|>"
    assert _split([text], tail) == _split(list(text), tail) == expected


def test_a_prompt_may_have_begun_the_message() -> None:
    assert _split(["hm<|end|>" + _FINAL], _TAIL + "<|channel|>analysis<|message|>") == ("hm", "42", [])
    assert _split(["42"], _TAIL + "<|channel|>final<|message|>") == ("", "42", [])
    assert _split(["just text"], "raw prompt") == ("", "just text", [])
    assert _split([_ANALYSIS + _FINAL], "raw prompt") == ("hm", "42", [])


def test_without_tools_a_recipient_means_nothing() -> None:
    assert _split([_ANALYSIS + _CALL], tools=None) == ("hm", "{}", [])


def test_a_call_that_was_cut_is_text() -> None:
    assert _split([_CALL.removesuffix("}")], complete=False) == ("", "{", [])


@pytest.mark.parametrize("content", ["[]", "x", "print('hey')"])
def test_a_message_to_a_tool_without_an_object_is_text(content: str) -> None:
    assert _split(list(_CALL.removesuffix("{}") + content)) == ("", content, [])


def test_messages_can_name_recipients_alone() -> None:
    splitter = ChannelParser(RECIPIENTS, "<|eot|><|start|>assistant")
    text = " to=self<|message|>hm<|eom|><|start|>assistant to=user<|message|>42<|eot|>"
    deltas = [delta for character in text for delta in splitter.feed(character)] + splitter.flush()
    assert "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta)) == "hm"
    assert "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)) == "42"


def test_a_message_to_the_user_may_hold_calls_and_one_to_the_model_itself_none() -> None:
    call = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
    messages = [f"self<|message|>{call}<|eom|>", f"user<|message|>So: {call}<|eom|>", f"user<|message|>{call}<|eot|>"]
    text = "<|start|>assistant".join(f" to={message}" for message in messages)
    expected = (call, "So:", ["0 add", "1 add"])
    for pieces in ([text], list(text)):
        assert _split(pieces, "<|eot|><|start|>assistant", style=RECIPIENTS) == expected
    cut = f" to=user<|message|>{call.removesuffix('}</tool_call>')}"
    assert _split([cut], "<|start|>assistant", complete=False, style=RECIPIENTS) == (
        "",
        call.removeprefix("<tool_call>").removesuffix("}</tool_call>"),
        [],
    )


@pytest.mark.parametrize("header", [" " * 20_000, " to=" + "x" * 20_000])
def test_a_header_that_never_ends_is_text(header: str) -> None:
    assert _split(list(header)) == _split([header]) == ("", header, [])


def test_reasoning_and_answer_stream_as_they_come() -> None:
    splitter = ChannelParser(CHANNELS, _TAIL)
    assert splitter.feed("<|channel|>analysis<|message|>h") == [ReasoningDelta("h")]
    assert splitter.thinking
    assert splitter.feed("m<|e") == [ReasoningDelta("m")]
    assert splitter.feed("nd|><|start|>assistant<|channel|>final<|message|>") == []
    assert splitter.feed("4") == [TextDelta("4")]


_MARKUP = [
    "<|start|>",
    "assistant",
    "<|channel|>",
    "analysis",
    "final",
    " to=f",
    "<|message|>",
    "{}",
    "<|end|>",
    "x",
    "",
]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from([*_MARKUP, "<|en", "d|>", " ", "\n"])), st.booleans(), st.sampled_from([_TOOLS, None]))
def test_the_split_does_not_depend_on_the_pieces(
    pieces: list[str], complete: bool, tools: ToolCallFormat | None
) -> None:
    whole = "".join(pieces)
    assert _split(pieces, tools=tools, complete=complete) == _split(list(whole), tools=tools, complete=complete)
