"""Requests for vectors, and what may be done with a vector."""

import base64
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxk.domain.embedding import (
    MAX_INPUT_CHARACTERS,
    MAX_INPUTS,
    EmbeddingRequest,
    EmbeddingSettings,
    InputKind,
    as_base64,
    shortened,
)
from mlxk.domain.errors import ValidationError
from mlxk.domain.models.model import ModelHandle, Origin

MODEL = ModelHandle("org/encoder", "/cache/encoder", Origin.CACHE)
NUMBERS = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=64)


def request(*inputs: str | tuple[int, ...], **settings: object) -> EmbeddingRequest:
    """Return a request for the vectors of some texts."""
    return EmbeddingRequest(MODEL, inputs, EmbeddingSettings(**settings))  # type: ignore[arg-type]


def test_texts_and_tokens_are_accepted() -> None:
    request("a", (1, 2, 3)).validate()
    request("a", kind=InputKind.QUERY, instruction="find it", dimensions=1, truncate=True).validate()


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (request(), "at least one text"),
        (request("a", ""), "input[1] is empty"),
        (request("a", ()), "input[1] is empty"),
        (request(*["a"] * (MAX_INPUTS + 1)), str(MAX_INPUTS)),
        (request("x" * (MAX_INPUT_CHARACTERS + 1)), "input[0] is longer"),
        (request("a", dimensions=0), "dimensions"),
        (request("a", instruction="find it"), "instruct belongs to queries"),
        (request("a", prompt_name="s", kind=InputKind.QUERY), "prompt_name says which prompt is taken"),
        (request("a", prompt_name="s", instruction="find it"), "prompt_name says which prompt is taken"),
    ],
)
def test_a_request_out_of_range_is_refused_by_the_name_of_its_field(bad: EmbeddingRequest, named: str) -> None:
    with pytest.raises(ValidationError) as caught:
        bad.validate()
    assert named in caught.value.message


@given(NUMBERS, st.integers(1, 64))
def test_a_shortened_vector_has_length_one_and_the_same_direction(numbers: list[float], dimensions: int) -> None:
    head = numbers[:dimensions]
    short = shortened(numbers, dimensions)
    assert len(short) == len(head)
    if dimensions >= len(numbers):
        assert list(short) == numbers
        return
    length = math.hypot(*head)
    if length > 1e-6:
        assert math.isclose(math.hypot(*short), 1, rel_tol=1e-6)
        assert all(
            math.isclose(value * length, before, abs_tol=1e-6) for value, before in zip(short, head, strict=True)
        )


@given(NUMBERS)
def test_base64_holds_the_numbers_themselves(numbers: list[float]) -> None:
    data = base64.b64decode(as_base64(numbers))
    assert list(struct.unpack(f"<{len(numbers)}f", data)) == numbers
