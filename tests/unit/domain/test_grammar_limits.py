"""Limits of grammars, at their bounds."""

import json

import pytest

from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.grammar import MAX_GRAMMAR_CHARACTERS, Grammar, GrammarKind


def schema_of(length: int) -> str:
    bare = json.dumps({"type": "object", "description": ""})
    return json.dumps({"type": "object", "description": "x" * (length - len(bare))})


def test_a_schema_may_be_as_long_as_the_limit_and_no_longer() -> None:
    longest, beyond = schema_of(MAX_GRAMMAR_CHARACTERS), schema_of(MAX_GRAMMAR_CHARACTERS + 1)
    assert (len(longest), len(beyond)) == (MAX_GRAMMAR_CHARACTERS, MAX_GRAMMAR_CHARACTERS + 1)
    Grammar(GrammarKind.JSON_SCHEMA, longest).validate()
    with pytest.raises(ValidationError, match=str(MAX_GRAMMAR_CHARACTERS)):
        Grammar(GrammarKind.JSON_SCHEMA, beyond).validate()


@pytest.mark.parametrize("text", ["true", "{}", '{"type": "string"}'])
def test_a_schema_is_an_object_or_true(text: str) -> None:
    Grammar(GrammarKind.JSON_SCHEMA, text).validate()


@pytest.mark.parametrize("text", ["false", "null", "[]", "1", '"x"', "{", "[" * 100_000])
def test_what_is_no_schema_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        Grammar(GrammarKind.JSON_SCHEMA, text).validate()


@pytest.mark.parametrize("text", ['["a"]', '["a", "b"]'])
def test_a_choice_is_between_strings(text: str) -> None:
    Grammar(GrammarKind.CHOICE, text).validate()


@pytest.mark.parametrize("text", ["[]", '["a", ""]', '["a", 1]', '"a"', '{"a": 1}'])
def test_what_is_no_choice_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        Grammar(GrammarKind.CHOICE, text).validate()
