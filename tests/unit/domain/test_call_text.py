"""Calls with arguments in JSON that are followed while they are written."""

import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxk.domain.formats.tool_call_stream import CallText
from mlxk.domain.generation.conversation import ToolCall

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
MARK = re.compile(r"!\s*(?=\{)")


def read(text: str) -> tuple[ToolCall, ...]:
    """Read a call that is JSON as a whole."""
    try:
        call = json.loads(text)
    except ValueError:
        return ()
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        return ()
    return (ToolCall(call["name"], json.dumps(call["arguments"]), "id"),)


def headed(text: str) -> tuple[ToolCall, ...]:
    """Read ``name!{}``."""
    found = re.fullmatch(r"\W*(\w+)!\s*\{\}", text)
    return (ToolCall(found[1], "{}", f"id of {found[1]}"),) if found else ()


def follow(call: CallText, pieces: list[str]) -> list[tuple[str, str]]:
    """Return name and arguments of the calls that were found."""
    calls: list[tuple[str, str]] = []
    for each in [each for piece in pieces for each in call.feed(piece)] + call.close():
        if each.name:
            assert each.arguments == ""
            calls.append((each.name, ""))
        calls[-1] = (calls[-1][0], calls[-1][1] + each.arguments)
    assert call.begun == bool(calls)
    return calls


@given(st.text(min_size=1), st.dictionaries(st.text(), JSON), st.sampled_from([None, 2]), st.booleans())
def test_name_and_arguments_are_found_however_the_text_arrives(
    name: str, arguments: dict[str, object], indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps({"name": name, "arguments": arguments}, indent=indent, ensure_ascii=ascii_only)
    found = follow(CallText(read), list(text))
    assert follow(CallText(read), [f"\n{text}\n"]) == found
    assert found or len(json.dumps(name)) > 900
    for called, written in found:
        assert called == name
        assert json.loads(written) == arguments


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
        '{"name": "f", "parameters": {"arguments": {}}}',
        " " * 2000 + '{"name": "f", "arguments": {}}',
    ],
)
def test_what_is_written_otherwise_is_left_to_a_parser(text: str) -> None:
    assert follow(CallText(read), list(text)) == follow(CallText(read), [text]) == []


@pytest.mark.parametrize("name", ["f", "arguments", '\\"arguments\\": {'])
def test_the_arguments_end_where_their_object_does(name: str) -> None:
    written = '{"a": "}\\"]", "b": [{}]}'
    text = f'{{"id": 1, "name": "{name}", "arguments": {written}}} and more {{}}'
    assert follow(CallText(read), [text]) == [(json.loads(f'"{name}"'), written)]


def test_several_calls_may_follow_one_another() -> None:
    text = 'f!{"a": "g!{}"}, g! {} h ! {} k!x!{'
    for pieces in ([text], list(text)):
        assert follow(CallText(headed, MARK, ""), pieces) == [("f", '{"a": "g!{}"}'), ("g", "{}")]


def test_name_and_id_come_before_the_arguments_and_those_as_they_are_written() -> None:
    call = CallText(headed, MARK, "")
    assert call.feed("f!") == []
    assert call.feed("{") == [ToolCall("f", "", "id of f"), ToolCall("", "{")]
    assert call.feed('"a": ') == [ToolCall("", '"a": ')]
    assert call.close() == []


@given(st.lists(st.sampled_from(["f!{", "g", "!", "{", "}", '"', "\\", " ", "x"])), st.lists(st.integers(0, 30)))
def test_the_calls_do_not_depend_on_the_pieces(written: list[str], places: list[int]) -> None:
    text = "".join(written)
    ends = sorted({min(place, len(text)) for place in places} | {0, len(text)})
    pieces = [text[begin:end] for begin, end in itertools.pairwise(ends)]
    assert follow(CallText(headed, MARK, ""), pieces) == follow(CallText(headed, MARK, ""), list(text))


@pytest.mark.parametrize("text", ["x" * 200_000, "!{" * 100_000, "f!{}" * 50_000, 'f!{"a": "' + "x" * 200_000])
def test_the_parser_reads_little_more_than_was_written(text: str) -> None:
    characters = 0

    def counted(opening: str) -> tuple[ToolCall, ...]:
        nonlocal characters
        characters += len(opening)
        return headed(opening)

    follow(CallText(counted, MARK, ""), [text[place : place + 100] for place in range(0, len(text), 100)])
    assert characters < 600_000
