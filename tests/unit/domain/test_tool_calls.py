"""Tool calls in a stream."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxk.domain.formats.tool_call_stream import CallText
from mlxk.domain.formats.tool_calls import ToolCallFormat, ToolCallSplitter
from mlxk.domain.generation.conversation import ToolCall
from mlxk.domain.generation.request import TextDelta, ToolCallDelta


def _parse(text: str) -> tuple[ToolCall, ...]:
    """A JSON list of names is that many calls; anything else is malformed."""
    try:
        names = json.loads(text)
    except ValueError:
        return ()
    return tuple(ToolCall(name, "{}") for name in names) if isinstance(names, list) else ()


_CLOSED = ToolCallFormat("<call>", "</call>", _parse)
_OPEN = ToolCallFormat("[CALLS]", "", _parse)


def _read(text: str) -> tuple[ToolCall, ...]:
    """A JSON object with a name and arguments is a call."""
    try:
        call = json.loads(text)
        return (ToolCall(call["name"], json.dumps(call["arguments"]), "id"),)
    except (LookupError, TypeError, ValueError):
        return ()


_FOLLOWED = ToolCallFormat("<call>", "</call>", _read, lambda: CallText(_read))


def _split(pieces: list[str], style: ToolCallFormat = _CLOSED, complete: bool = True) -> list[str | tuple[int, str]]:
    """Joined text and (index, name) of calls, in order."""
    splitter = ToolCallSplitter(style)
    deltas = [delta for piece in pieces for delta in splitter.feed(piece)] + splitter.flush(complete)
    result: list[str | tuple[int, str]] = []
    for delta in deltas:
        if isinstance(delta, ToolCallDelta):
            result.append((delta.index, delta.call.name))
        elif result and isinstance(result[-1], str):
            result[-1] += delta.text
        else:
            result.append(delta.text)
    return result


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no call at all\n", ["no call at all\n"]),
        ('<call>["a"]</call>', [(0, "a")]),
        ('Let me see.\n\n<call>\n["a"]\n</call>\n', ["Let me see.", (0, "a")]),
        ('<call>["a"]</call>\n<call>["b"]</call>', [(0, "a"), (1, "b")]),
        ('<call>["a","b"]</call><call>["c"]</call>', [(0, "a"), (1, "b"), (2, "c")]),
        ('<call>["a"]</call>\n\nDone. ', [(0, "a"), "Done. "]),
        ("x <call>nonsense</call> y", ["x <call>nonsense</call> y"]),
        ('<call>bad</call> <call>["a"]</call> z', ["<call>bad</call>", (0, "a"), "z"]),
        ("stray </call> end", ["stray </call> end"]),
        ('<call><call>["a"]</call>', ['<call><call>["a"]</call>']),
        ("a beginning <cal", ["a beginning <cal"]),
        ('<call>["a"]', [(0, "a")]),
        ('<call>["a"', ['<call>["a"']),
    ],
)
def test_calls_and_text_are_told_apart(text: str, expected: list[object]) -> None:
    assert _split([text]) == _split(list(text)) == expected


def test_a_section_without_an_end_marker_runs_to_the_next_or_the_end() -> None:
    text = 'Hm. [CALLS]["a"][CALLS]["b"]'
    assert _split([text], _OPEN) == _split(list(text), _OPEN) == ["Hm.", (0, "a"), (1, "b")]
    assert _split(['[CALLS]["a"'], _OPEN) == ['[CALLS]["a"']


def test_an_open_section_of_an_answer_that_was_cut_is_text() -> None:
    assert _split(['say <call>["a"]'], complete=False) == ['say <call>["a"]']
    assert _split(['<call>["a"]</call>'], complete=False) == [(0, "a")]


def test_text_before_a_call_is_not_held_back() -> None:
    splitter = ToolCallSplitter(_CLOSED)
    assert splitter.feed("Let me") == [TextDelta("Let me")]
    assert splitter.feed(" see \n") == [TextDelta(" see")]
    assert splitter.feed("then") == [TextDelta(" \nthen")]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(["<call>", "</call>", "<ca", "ll>", '["a"]', "\n", " ", "x", "", "<"])), st.booleans())
def test_the_split_does_not_depend_on_the_pieces(pieces: list[str], complete: bool) -> None:
    whole = "".join(pieces)
    split = _split(pieces, complete=complete)
    assert split == _split(list(whole), complete=complete)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["<call>", "</call>", "<ca", "ll>", "{}", "\n", " ", "x", "<"])), st.booleans())
def test_without_a_well_formed_call_nothing_changes(pieces: list[str], complete: bool) -> None:
    whole = "".join(pieces)
    assert "".join(str(part) for part in _split(pieces, complete=complete)) == whole


def test_calls_come_out_as_they_are_written_and_the_answer_goes_on() -> None:
    splitter = ToolCallSplitter(_FOLLOWED)
    call = '<call>\n{"name": "f", "arguments": {"a": 1}}\n</call>'
    deltas = [delta for piece in f"Well. {call}\n{call} Done." for delta in splitter.feed(piece)] + splitter.flush()
    text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    calls = [delta for delta in deltas if isinstance(delta, ToolCallDelta)]
    assert text == "Well.Done."
    pieces = [ToolCall("f", "", "id"), *(ToolCall("", character) for character in '{"a": 1}')]
    assert calls == [ToolCallDelta(index, piece) for index in (0, 1) for piece in pieces]


def test_a_call_that_is_cut_keeps_what_there_was_of_its_arguments() -> None:
    splitter = ToolCallSplitter(_FOLLOWED)
    deltas = splitter.feed('<call>{"name": "f", "arguments": {"a": ')
    assert splitter.flush(complete=False) == []
    assert deltas == [ToolCallDelta(0, ToolCall("f", "", "id")), ToolCallDelta(0, ToolCall("", '{"a": '))]


@pytest.mark.parametrize("inside", ["nonsense", '{"name": "f"', '{"name": "f", "arguments": [1]'])
def test_a_section_in_which_no_call_begins_is_read_when_it_ends(inside: str) -> None:
    assert _split(list(f"<call>{inside}</call>"), _FOLLOWED) == [f"<call>{inside}</call>"]
    assert _split(list(f"<call>{inside}"), _FOLLOWED, complete=False) == [f"<call>{inside}"]
    assert _split(list(f"<call>{inside}" + "}</call>"), _FOLLOWED) == _split(
        [f"<call>{inside}" + "}</call>"], ToolCallFormat("<call>", "</call>", _read)
    )
