"""References: what people type to mean a model."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxk.domain.errors import ValidationError
from mlxk.domain.models.reference import MAX_REFERENCE_LENGTH, ModelRef, ReferenceKind, is_path

NAME = st.text(string.ascii_letters + string.digits + "-._/@ ~é漢", min_size=1, max_size=40)


@given(st.text())
def test_any_text_is_parsed_or_refused_as_a_value(text: str) -> None:
    try:
        ref = ModelRef.parse(text)
    except ValidationError:
        return
    assert ref.text == text
    assert ref.name


@given(NAME)
def test_a_parsed_reference_written_out_means_the_same_again(text: str) -> None:
    try:
        ref = ModelRef.parse(text)
    except ValidationError:
        return
    again = ModelRef.parse(str(ref))
    assert (again.kind, again.name, again.revision) == (ref.kind, ref.name, ref.revision)


@pytest.mark.parametrize("text", [".", "..", "~", "./model", "../model", "/models/x", "~/models/x", "./a@b"])
def test_an_explicit_path_is_a_path_and_keeps_its_at_sign(text: str) -> None:
    ref = ModelRef.parse(text)
    assert (ref.kind, ref.name, ref.revision) == (ReferenceKind.PATH, text, None)
    assert is_path(text)


@pytest.mark.parametrize("text", ["model", "org/model", ".hidden/model", "~user/model", "a/../b"])
def test_a_name_is_never_a_path(text: str) -> None:
    assert ModelRef.parse(text).kind is ReferenceKind.NAME


def test_everything_after_the_last_at_sign_is_the_revision() -> None:
    ref = ModelRef.parse("org/m@odel@refs/pr/1")
    assert (ref.name, ref.revision) == ("org/m@odel", "refs/pr/1")


def test_a_built_in_name_is_one_only_without_a_revision() -> None:
    assert ModelRef.parse("demo").kind is ReferenceKind.BUILT_IN
    assert ModelRef.parse("demo@main").kind is ReferenceKind.NAME


@pytest.mark.parametrize("text", ["", "  ", "@main", "model@", "a\nb", "a\0b", "x" * (MAX_REFERENCE_LENGTH + 1)])
def test_what_cannot_be_a_reference_is_refused_with_the_field(text: str) -> None:
    with pytest.raises(ValidationError, match=r"^model: "):
        ModelRef.parse(text)
