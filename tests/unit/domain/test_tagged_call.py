"""Calls with arguments in tags that are followed while they are written."""

import itertools
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxk.domain.formats.tool_call_stream import CallTags, TaggedCall
from mlxk.domain.generation.conversation import ToolCall

TAGS = CallTags("<call ", ">", "<arg ", ">", "</arg>", "</call>")
BARE = CallTags("", "<key>", "<key>", "<value>", "</value>", "")
ARGUMENT = re.compile(r"<arg (.*?)>(.*?)</arg>|<key>(.*?)</key><value>(.*?)</value>", re.DOTALL)


def value(key: str, text: str) -> object:
    """Return an argument's value: keys in capitals take whole numbers, the others anything."""
    return int(text) if key.isupper() and text != "null" else text


def read(text: str) -> tuple[ToolCall, ...]:
    """Read a whole call."""
    found = re.fullmatch(r"\s*<call (\w+)>(.*)</call>\s*|\s*(\w+)(<key>.*)", text, re.DOTALL)
    if found is None:
        return ()
    arguments = ARGUMENT.findall(found[2] or found[4] or "")
    try:
        read = {a or c: value(a or c, b or d) for a, b, c, d in arguments}
    except ValueError:
        return ()
    return (ToolCall(found[1] or found[3], json.dumps(read, ensure_ascii=False), "id"),)


def follow(pieces: list[str], tags: CallTags = TAGS, closed: bool = True) -> list[tuple[str, str]]:
    """Return name and arguments of the calls that were found."""
    call = TaggedCall(tags, read)
    calls: list[tuple[str, str]] = []
    for each in [each for piece in pieces for each in call.feed(piece)] + (call.close() if closed else []):
        if each.name:
            assert each.arguments == ""
            calls.append((each.name, ""))
        calls[-1] = (calls[-1][0], calls[-1][1] + each.arguments)
    assert call.begun == bool(calls)
    return calls


MARKUP = ["<", ">", "</arg", "<arg ", "</call>", "<call f>", "<key>", "</value", '"', "\n", "é"]
VALUES = st.lists(st.sampled_from(MARKUP)).map("".join).filter(lambda text: not re.search("</(arg|value)>", text))


@given(st.dictionaries(st.sampled_from("abcd"), VALUES), st.booleans())
def test_a_whole_call_has_the_arguments_that_its_parser_reads(arguments: dict[str, str], bare: bool) -> None:
    form = "<key>{}</key><value>{}</value>" if bare else " <arg {}>{}</arg>"
    written = "".join(form.format(*each) for each in arguments.items())
    text = f"f{written}" if bare else f"<call f>{written}\n</call>"
    expected = [("f", json.dumps(arguments, ensure_ascii=False))] if arguments or not bare else []
    tags = BARE if bare else TAGS
    assert follow([text], tags) == follow(list(text), tags) == expected


def test_name_and_id_come_with_the_opening_and_then_each_argument() -> None:
    call = TaggedCall(TAGS, read)
    assert call.feed("\n<call f") == []
    assert call.feed(">") == [ToolCall("f", "", "id")]
    assert call.feed("<arg a>1</arg") == []
    assert call.feed("><arg B>2</arg>") == [ToolCall("", '{"a": "1"'), ToolCall("", ', "B": 2')]
    assert call.feed("</call> <call g></call>") == [ToolCall("", "}"), ToolCall("g", "", "id"), ToolCall("", "{}")]
    assert call.close() == []


def test_an_argument_that_the_parser_refuses_is_given_as_the_text_it_is() -> None:
    assert follow(["<call f><arg A>\nabc </arg><arg B>2</arg></call>"]) == [("f", '{"A": "abc", "B": 2}')]
    assert follow(["f<key>A</key><value>x</value>"], BARE) == [("f", '{"A": "x"}')]
    assert follow(["<call f><arg a</arg></call>"]) == [("f", '{"a": ""}')]


def test_an_argument_that_is_written_twice_has_its_last_value() -> None:
    [(_, written)] = follow(["<call f><arg a>1</arg><arg b>2</arg><arg a>3</arg></call>"])
    assert json.loads(written) == {"a": "3", "b": "2"}


def test_a_call_that_ends_with_its_section_is_closed_then() -> None:
    assert follow(["<call f><arg a>1</arg>"]) == [("f", '{"a": "1"}')]
    assert follow(["f<key>a</key><value>1</value>\n"], BARE) == [("f", '{"a": "1"}')]


def test_a_call_that_is_cut_keeps_what_there_was_of_its_arguments() -> None:
    text = "<call f><arg a>1</arg><arg b>2</arg></call>"
    [(_, whole)] = follow([text])
    for length in range(len("<call f>"), len(text)):
        [(_, written)] = follow([text[:length]], closed=False)
        assert whole.startswith(written)
        assert written != whole
    assert follow(["<call f><arg a>1</arg><arg b>2</call>"]) == [("f", '{"a": "1"')]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "<call f",
        "<call f<arg a>1</arg></call>",
        "<call ><arg a>1</arg>",
        "<arg a>1</arg></call>",
        "<call " + "f" * 2000 + "></call>",
    ],
)
def test_what_is_written_otherwise_is_left_to_a_parser(text: str) -> None:
    assert follow([text]) == follow(list(text)) == []


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(["<call ", "f", ">", "<call f>", "<arg ", "<arg a>1</arg>", "</arg>", "</call>", "<", "\n"])
    ),
    st.lists(st.integers(0, 40)),
)
def test_the_calls_do_not_depend_on_the_pieces(written: list[str], places: list[int]) -> None:
    text = "".join(written)
    ends = sorted({min(place, len(text)) for place in places} | {0, len(text)})
    pieces = [text[begin:end] for begin, end in itertools.pairwise(ends)]
    for closed in (True, False):
        assert follow(pieces, closed=closed) == follow(list(text), closed=closed)


@pytest.mark.parametrize(
    "text",
    [
        "<call " + "x" * 200_000,
        "<call " * 30_000 + ">",
        "<call f>" * 20_000,
        "<call f><arg a>" + "x>" * 100_000 + "</arg></call>",
        "<call f>" + "<arg a>1</arg>" * 10_000 + "</call>",
        "<call f>" + "<arg A>x</arg>" * 10_000 + "</call>",
    ],
)
def test_the_parser_reads_little_more_than_was_written(text: str) -> None:
    characters = 0

    def counted(part: str) -> tuple[ToolCall, ...]:
        nonlocal characters
        characters += len(part)
        return read(part)

    call = TaggedCall(TAGS, counted)
    for place in range(0, len(text), 50):
        call.feed(text[place : place + 50])
    call.close()
    assert characters < 1_000_000
