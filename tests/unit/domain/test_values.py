"""The end of a JSON value in a stream of text."""

import itertools

import pytest

from mlxk.domain.formats.values import Balance

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
