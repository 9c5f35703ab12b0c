"""Values as models write them, and the end of a JSON value in a stream of text."""

import itertools

import pytest

from mlxk.domain.formats.values import (
    JSON,
    PYTHON,
    Balance,
    MalformedValueError,
    Notation,
    UnfinishedValueError,
    read_value,
)

VALUES = ('{"a": "x\\"}"}', '{"a": "\\\\"}', '["]", {"b\\"": [1, {}]}]', '{"a": "\\u007d{[", "b": "\\\\\\"}"}')
"""With brackets and quotes that end nothing, inside of strings."""


@pytest.mark.parametrize("value", VALUES)
def test_a_value_ends_at_its_own_bracket_however_it_is_cut(value: str) -> None:
    text = f"{value} and then }} more"
    for cuts in itertools.combinations(range(len(text) + 1), 2):
        balance, ends = Balance(), []
        for start, stop in itertools.pairwise((0, *cuts, len(text))):
            if not ends and (end := balance.feed(text[start:stop])) is not None:
                ends.append((end, balance.read))
        (end, read), *_ = ends
        assert end == len(value)
        assert read >= end


@pytest.mark.parametrize("value", VALUES)
def test_a_value_that_goes_on_has_no_end(value: str) -> None:
    assert Balance().feed(value[:-1]) is None


SINGLE = Notation(quotes=('"', "'"))
WORDS = Notation(quotes=("|", '"'), words=True, ends=("<end>",))


@pytest.mark.parametrize(
    ("notation", "text", "value"),
    [
        (SINGLE, "'\\x41\\u00e9\\U0001F600'", "Aé😀"),
        (SINGLE, "'C:\\users \\xyz \\Und \\q'", "C:\\users \\xyz \\Und \\q"),
        (SINGLE, "'\\u 41 \\x+1 \\u1_23'", "\\u 41 \\x+1 \\u1_23"),
        (SINGLE, "'\\UFFFFFFFF'", "\\UFFFFFFFF"),
        (SINGLE, "'\\ud83d\\ude00 \\ud83d!'", "😀 \ufffd!"),
        (SINGLE, "'\\'\\n\\/\\\\'", "'\n/\\"),
        (SINGLE, "[True, None, false]", [True, None, False]),
        (SINGLE, "[0x1F, -0x10, 1_000, -1.5e3, .5, 2.]", [31, -16, 1000, -1500.0, 0.5, 2.0]),
        (SINGLE, "{1: 'a', 'b': 2,}", {"1": "a", "b": 2}),
        (SINGLE, "{'a', 'b'}", ["a", "b"]),
        (SINGLE, "(1, [])", [1, []]),
        (PYTHON, "'''it's \\n'''", "it's \\n"),
        (WORDS, "{a:x y,|b c|:true,d:0x10,e:1.5.2}", {"a": "x y", "b c": True, "d": 16, "e": "1.5.2"}),
        (WORDS, '{"a":[null,b],c:{d:|x|<end>', {"a": [None, "b"], "c": {"d": "x"}}),
        (WORDS, "{a:{b:|1|<end>", {"a": {"b": "1"}}),
    ],
)
def test_values_are_read_as_models_write_them(notation: Notation, text: str, value: object) -> None:
    assert read_value(text, 0, notation)[0] == value


@pytest.mark.parametrize(
    ("notation", "text"),
    [
        (JSON, "NaN,"),
        (JSON, "[Infinity]"),
        (SINGLE, "1e999"),
        (SINGLE, "9" * 5000),
        (SINGLE, "{'a': 1, 'b'}"),
        (SINGLE, "{'a' 1}"),
        (SINGLE, "[maybe]"),
        (SINGLE, "[;]"),
        (WORDS, "{a:,}"),
        (WORDS, "{:1}"),
        (SINGLE, "[" * 129 + "]" * 129),
    ],
)
def test_what_is_no_value_is_malformed(notation: Notation, text: str) -> None:
    with pytest.raises(MalformedValueError):
        read_value(text, 0, notation)


@pytest.mark.parametrize(
    ("notation", "text"),
    [(SINGLE, "'a"), (SINGLE, "'a\\"), (SINGLE, "[1,"), (SINGLE, "Tru"), (PYTHON, "'''a''"), (WORDS, "{a:|1|<en")],
)
def test_a_value_whose_end_may_follow_is_unfinished(notation: Notation, text: str) -> None:
    with pytest.raises(UnfinishedValueError):
        read_value(text, 0, notation)


def test_a_value_may_be_as_deep_as_the_limit() -> None:
    found, end = read_value("[" * 128 + "'a'" + "]" * 128, 0, SINGLE)
    for _ in range(128):
        (found,) = found
    assert (found, end) == ("a", 259)
