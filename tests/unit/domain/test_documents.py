"""JSON documents read without trust."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxk.domain.models.file_formats import read_document


@given(st.binary())
def test_any_bytes_are_a_document_or_have_a_problem(data: bytes) -> None:
    document = read_document(data)
    assert document.valid == (document.problem is None)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_what_was_written_as_json_is_read_back(value: object) -> None:
    assert read_document(json.dumps(value).encode()).value == value


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"{nope", ""),
        (b"", ""),
        (b"[" * 50_000, "nested too deeply"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "contains a number that is too long"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"\xef\xbb\xbf{}", "starts with a byte order mark"),
    ],
)
def test_a_document_that_cannot_be_read_says_why(data: bytes, problem: str) -> None:
    assert read_document(data).problem == problem


def test_a_document_over_the_limit_is_refused() -> None:
    assert read_document(b" " * 11, limit=10).problem is not None


def test_every_value_can_be_written_as_strict_json_again() -> None:
    document = read_document(b'{"a": NaN, "b": [Infinity, -Infinity], "c": 1e999}')
    assert json.dumps(document.value, allow_nan=False)
    assert document.mapping["a"] == "NaN"


def test_a_repeated_key_means_its_last_value() -> None:
    assert read_document(b'{"a": 1, "a": 2}').value == {"a": 2}
