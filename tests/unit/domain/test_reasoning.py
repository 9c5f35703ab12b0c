"""Reasoning, told from templates and split off streams."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxk.domain.formats.reasoning import (
    CHANNELS,
    ReasoningFormat,
    ReasoningSplitter,
    ReasoningStyle,
    detect_reasoning,
    turn_end,
)
from mlxk.domain.generation.request import ReasoningDelta, TextDelta

_THINK = ReasoningFormat(ReasoningStyle.TAGS, "<think>", "</think>")
_COMMAND = detect_reasoning("<|START_THINKING|><|END_THINKING|>", ())
_QWEN = "{%- if '</think>' in content %}...{%- endif %}<|im_start|>assistant\n<think>\n"


def _split(pieces: list[str], opened: bool = False, style: ReasoningFormat = _THINK) -> tuple[str, str]:
    """Reasoning and text of a stream."""
    splitter = ReasoningSplitter(style, opened)
    deltas = [delta for piece in pieces for delta in splitter.feed(piece)] + splitter.flush()
    assert all(delta.text for delta in deltas)
    thoughts = "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta))
    return thoughts, "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))


def _expected(text: str, opened: bool) -> tuple[str, str]:
    """The rule, on a whole text."""
    thoughts, after = "", False
    while True:
        block = re.match(r"\s*<think>", text)
        if not opened and block is None:
            stray = re.match(r"\s*</think>\n*", text)
            if stray is None:
                return thoughts, text.lstrip("\n") if after else re.sub(r"(?<=\n)</think>\n*", "", text, count=1)
            text, after = text[stray.end() :], True
            continue
        text = text[block.end() if block and not opened else 0 :]
        opened = False
        body, closed, text = text.partition("</think>")
        body = re.sub(r"^(\n|<think>)+", "", body)
        thoughts += body.rstrip("\n") if closed else body
        if not closed:
            return thoughts, ""
        text, after = text.lstrip("\n"), True


def test_a_stray_end_is_over_with_the_line_breaks_after_it() -> None:
    splitter = ReasoningSplitter(_THINK)
    found, passed = "", []
    for piece in ("Thoughts\n", "</think>", "\n", "\nAnswer"):
        found += "".join(delta.text for delta in splitter.feed(piece))
        passed.append(splitter.passes_unchanged)
    assert (found, passed) == ("Thoughts\nAnswer", [False, False, False, True])


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.sampled_from(["<think>", "</think>", "<thi", "nk>", "</", "\n", " ", "a", "", "b<"])), st.booleans())
def test_the_split_does_not_depend_on_the_pieces(pieces: list[str], opened: bool) -> None:
    whole = "".join(pieces)
    assert _split(pieces, opened) == _split([whole], opened) == _split(list(whole), opened) == _expected(whole, opened)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="a\n <think/>", max_size=30))
def test_an_answer_without_a_block_is_untouched(text: str) -> None:
    text = "x" + text
    assert _split(list(text)) == ("", text)
    assert _split([text]) == ("", text)


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("<think>\nI think\n</think>\n\nThe answer is 42.", False, ("I think", "The answer is 42.")),
        ("\n<think>a</think>b", False, ("a", "b")),
        ("I think\n</think>\n\nIt is 42.", True, ("I think", "It is 42.")),
        ("<think>\nrepeated</think>yes", True, ("repeated", "yes")),
        ("<think>\n\n</think>\n\nyes", False, ("", "yes")),
        ("</think>\n\nyes", True, ("", "yes")),
        ("<think>never closed\n", False, ("never closed\n", "")),
        ("never closed", True, ("never closed", "")),
        ("The final answer is 42. Bye.", False, ("", "The final answer is 42. Bye.")),
        ("Write <think> and </think> yourself.", False, ("", "Write <think> and </think> yourself.")),
        ("<think>one</think>\n<think>two</think>  x\n", False, ("onetwo", "  x\n")),
        ("<think>a\n\nb</think> x", False, ("a\n\nb", " x")),
        ("ends in a beginning <thi", False, ("", "ends in a beginning <thi")),
        ("<thi", False, ("", "<thi")),
        (" \n", False, ("", " \n")),
        ("", True, ("", "")),
    ],
)
def test_reasoning_and_answer_are_told_apart(text: str, opened: bool, expected: tuple[str, str]) -> None:
    assert _split([text], opened) == expected
    assert _split(list(text), opened) == expected


def test_reasoning_streams_as_it_comes() -> None:
    splitter = ReasoningSplitter(_THINK)
    assert splitter.feed("<think>\nOne") == [ReasoningDelta("One")]
    assert splitter.thinking
    assert splitter.feed(" two\n") == [ReasoningDelta(" two")]
    assert splitter.feed("three</th") == [ReasoningDelta("\nthree")]
    assert splitter.feed("ink>\n") == []
    assert not splitter.thinking
    assert splitter.feed("\nYes") == [TextDelta("Yes")]
    assert splitter.feed(" <") == [TextDelta(" ")]
    assert splitter.flush() == [TextDelta("<")]


def test_markers_around_the_answer_are_no_part_of_it() -> None:
    style = detect_reasoning(None, {"<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"})
    assert style is not None
    text = (
        "<|open|>think<|sep|>hm<|close|>think<|sep|><|open|>response<|sep|>yes"
        "<|close|>response<|sep|><|close|>message<|sep|>"
    )
    assert _split([text], style=style) == _split(list(text), style=style) == ("hm", "yes")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nhm\n</think>\n<response>\nyes\n\nno\n</response>\n", ("hm", "yes\n\nno\n")),
        ("<response>yes</response>", ("", "yes")),
        ("<think>hm</think><response>yes", ("hm", "yes")),
        ("<think>hm</think><response>yes\n", ("hm", "yes\n")),
        ("<think>hm</think>yes </response>", ("hm", "yes </response>")),
        ("yes <response> no </response>", ("", "yes <response> no </response>")),
    ],
)
def test_tags_around_the_answer_are_dropped_with_the_line_breaks_inside(text: str, expected: tuple[str, str]) -> None:
    style = detect_reasoning("<think></think><response></response>", ())
    assert style is not None
    assert _split([text], style=style) == _split(list(text), style=style) == expected


@pytest.mark.parametrize(
    ("template", "vocabulary", "start"),
    [
        (_QWEN, {"<think>", "</think>"}, "<think>"),
        (_QWEN, set(), "<think>"),
        (None, {"<think>", "</think>"}, "<think>"),
        ("no word of it", {"<think>", "</think>"}, "<think>"),
        ("[THINK]...[/THINK]", {"<think>", "</think>", "[THINK]", "[/THINK]"}, "[THINK]"),
        (None, {"[THINK]", "[/THINK]"}, "[THINK]"),
        (None, {"<|think:start|>", "<|think:end|>"}, "<|think:start|>"),
        (None, {"<longcat_think>", "</longcat_think>"}, "<longcat_think>"),
        (None, {"<seed:think>", "</seed:think>"}, "<seed:think>"),
        (None, {"<|START_THINKING|>", "<|END_THINKING|>"}, "<|START_THINKING|>"),
        (None, {"<|channel>", "<channel|>"}, "<|channel>thought"),
        ("<thinking>...</thinking>", set(), "<thinking>"),
        ("as [BEGIN FINAL RESPONSE] ... [END FINAL RESPONSE]", set(), "Here are my reasoning steps:"),
        ("<|start|>assistant<|channel|>analysis<|message|>", set(), CHANNELS.start),
        (None, {"<|start|>", "<|channel|>", "<|message|>"}, CHANNELS.start),
    ],
)
def test_the_format_is_told_from_template_and_vocabulary(
    template: str | None, vocabulary: set[str], start: str
) -> None:
    style = detect_reasoning(template, vocabulary)
    assert style is not None
    assert style.start == start


@pytest.mark.parametrize(("template", "vocabulary"), [(None, set()), ("<think> only opens", {"<think>"}), ("", {"a"})])
def test_a_model_without_both_tags_has_no_format(template: str | None, vocabulary: set[str]) -> None:
    assert detect_reasoning(template, vocabulary) is None


def test_a_block_opened_by_the_prompt_is_recognised() -> None:
    assert _THINK.opened_by("<|im_start|>assistant\n<think>\n")
    assert _THINK.opened_by("<think>")
    assert not _THINK.opened_by("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not _THINK.opened_by("what is <think>?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("style", "after", "expected"),
    [
        (None, "<|im_end|>\n<|im_start|>user", "<|im_end|>"),
        (None, "\n<|end|>\n", "<|end|>"),
        (None, "<|user|>\nHi", "<|user|>"),
        (None, " and no token", None),
        (None, "", None),
        (_THINK, "</think><|im_end|>", None),
        (
            detect_reasoning("<|START_THINKING|><|END_THINKING|>", ()),
            "<|END_RESPONSE|><|END_OF_TURN|>",
            "<|END_OF_TURN|>",
        ),
    ],
)
def test_the_token_that_ends_a_turn_is_the_first_one_after_an_answer(
    style: ReasoningFormat | None, after: str, expected: str | None
) -> None:
    tokens = {"<|im_end|>", "<|im_start|>", "<|end|>", "<|user|>", "</think>", "<|END_RESPONSE|>", "<|END_OF_TURN|>"}
    assert turn_end(style, after, tokens) == expected


@pytest.mark.parametrize("style", [_THINK, CHANNELS])
def test_the_closing_words_end_the_reasoning(style: ReasoningFormat) -> None:
    from mlxk.domain.formats.output_parser import OutputParser

    stream = OutputParser(reasoning=style)
    assert stream.feed(f"{style.start}hm") == [ReasoningDelta("hm")]
    assert stream.thinking
    assert stream.feed(style.closing) == []
    assert not stream.thinking
    assert stream.feed("yes") == [TextDelta("yes")]
