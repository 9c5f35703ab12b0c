"""Tool calls that are followed while they are written."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxk.domain.call_text import CallText
from mlxk.domain.conversation import ToolCall
from mlxk.domain.generation import TextDelta, ToolCallDelta
from mlxk.domain.tool_calls import ToolCallFormat, ToolCallSplitter

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def follow(pieces: list[str]) -> tuple[str | None, str]:
    """Return the name and the arguments a call was found to have."""
    call = CallText()
    arguments = "".join(call.feed(piece) for piece in pieces)
    return call.name, arguments


@given(st.text(min_size=1), st.dictionaries(st.text(), JSON), st.sampled_from([None, 2]), st.booleans())
def test_name_and_arguments_are_found_however_the_text_arrives(
    name: str, arguments: dict[str, object], indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps({"name": name, "arguments": arguments}, indent=indent, ensure_ascii=ascii_only)
    found, written = follow(list(text))
    assert follow([f"\n{text}\n"]) == (found, written)
    assert found == name or len(json.dumps(name)) > 900
    assert found is None or json.loads(written) == arguments


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        '{"name": "f"}',
        '{"name": "", "arguments": {}}',
        '{"name": 3, "arguments": {}}',
        '{"name": "f", "arguments": "{}"}',
        '{"name": "f", "arguments": [1]}',
        '{"arguments": {}, "name": "f"}',
        '[{"name": "f", "arguments": {}}]',
        '{"name": "\\x", "arguments": {}}',
        " " * 2000 + '{"name": "f", "arguments": {}}',
    ],
)
def test_what_is_written_otherwise_is_left_to_a_parser(text: str) -> None:
    assert follow(list(text)) == (None, "")


def test_the_arguments_end_where_their_object_does() -> None:
    written = '{"a": "}\\"]", "b": [{}]}'
    assert follow(['{"name": "f", "arguments": ' + written + "} and more {}"]) == ("f", written)


def test_calls_come_out_as_they_are_written_and_the_answer_goes_on() -> None:
    splitter = ToolCallSplitter(ToolCallFormat("<call>", "</call>", lambda text: (), lambda: "id"))
    call = '<call>\n{"name": "f", "arguments": {"a": 1}}\n</call>'
    deltas = [delta for piece in f"Well. {call}\n{call} Done." for delta in splitter.feed(piece)]
    deltas += splitter.flush()
    text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    calls = [delta for delta in deltas if isinstance(delta, ToolCallDelta)]
    assert text == "Well.Done."
    pieces = [ToolCall("f", "", "id"), *(ToolCall("", character) for character in '{"a": 1}')]
    assert calls == [ToolCallDelta(index, piece) for index in (0, 1) for piece in pieces]


def test_a_call_that_is_cut_keeps_what_there_was_of_its_arguments() -> None:
    splitter = ToolCallSplitter(ToolCallFormat("<call>", "</call>", lambda text: (), lambda: "id"))
    deltas = splitter.feed('<call>{"name": "f", "arguments": {"a": ')
    assert splitter.flush(complete=False) == []
    assert deltas == [ToolCallDelta(0, ToolCall("f", "", "id")), ToolCallDelta(0, ToolCall("", '{"a": '))]
