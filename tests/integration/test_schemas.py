"""Schemas that llguidance would enforce otherwise than they say, or die of: rounded inwards, or refused."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from transformers import AutoTokenizer

from mlxk.adapters.mlx.prompting.grammar import GrammarCompiler
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.grammar import Grammar
from mlxk.entrypoints.http.openai.chat.tools import FunctionDefinition, ToolParam, forced_call

_DEMO = Path(__file__).parents[2] / "adapters" / "builtin" / "models" / "demo"


@functools.cache
def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(_DEMO)


@functools.cache
def _compiler() -> GrammarCompiler:
    return GrammarCompiler(_tokenizer(), lambda: [_tokenizer().eos_token_id])


@pytest.mark.parametrize(
    ("schema", "explanation"),
    [
        ('{"$ref": "#"}', "following # leads in a circle"),
        ('{"items": {"$ref": "#/$defs/a~1"}, "$defs": {"a/": {"$ref": "#/items"}}}', "leads in a circle"),
        (
            '{"properties": {"x": {"$ref": "#/$defs/a%20b"}}, "$defs": {"a b": {"$ref": "#/properties/x"}}}',
            "leads in a circle",
        ),
        ('{"items": {"$ref": "#n"}, "$defs": {"a": {"$anchor": "n", "$ref": "#n"}}}', "following #n leads in a circle"),
        ('{"items": {"$ref": "#/default"}, "default": {"$ref": "#/items"}}', "leads in a circle"),
        ('{"const": -9223372036854775808}', "const is beyond"),
        ('{"const": 9007199254740993}', "const is beyond"),
        ('{"properties": {"a": {"enum": [[{"b": 1e300}]]}}}', "enum is beyond"),
        ('{"type": "integer", "minimum": 100000000000000000000}', "its minimum is beyond 64 bits"),
        ('{"type": "integer", "exclusiveMinimum": 9223372036854775807}', "its exclusiveMinimum is beyond 64 bits"),
        ('{"type": "integer", "maximum": -9223372036854775807}', "its maximum is beyond 64 bits"),
        ('{"minimum": -1e30, "maximum": -9223372036854775808}', "its maximum is beyond 64 bits"),
    ],
)
def test_what_cannot_be_enforced_is_refused_before_llguidance_sees_it(schema: str, explanation: str) -> None:
    with pytest.raises(ValidationError, match=explanation):
        _compiler().compile(Grammar.json_schema(schema))


def _takes(grammar: Grammar, text: str) -> bool:
    """Whether an answer of that text would be held to be whole."""
    constraint = _compiler().compile(grammar).constrain()
    tokens = _tokenizer().encode(text, add_special_tokens=False)
    logits = mx.zeros((1, len(_tokenizer())))
    for count, token in enumerate(tokens):
        if constraint(mx.array(tokens[:count]), logits)[0, token].item() == -math.inf:
            return False
    constraint(mx.array(tokens), logits)
    return constraint.complete


@pytest.mark.parametrize(
    "definitions",
    [
        {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}},
        {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]}, "b": {"oneOf": [{"$ref": "#/$defs/a"}]}},
        {"a": {"anyOf": [{"allOf": [{"oneOf": [{"$ref": "#/$defs/a"}]}], "title": "A"}]}},
        {"a": {"anyOf": [{"$ref": "#b"}]}, "b": {"$anchor": "b", "anyOf": [{"$ref": "#/$defs/a"}]}},
    ],
)
def test_circles_through_alternatives_are_refused_before_an_answer_begins(definitions: dict[str, Any]) -> None:
    schema = {"properties": {"p": {"$ref": "#/$defs/a"}}, "required": ["p"], "$defs": definitions}
    with pytest.raises(ValidationError, match="leads in a circle and to nothing else"):
        _compiler().compile(Grammar.json_schema(json.dumps(schema)))


@pytest.mark.parametrize(
    ("schema", "explanation"),
    [
        ('{"$ref": "#n"}', "Anchor 'n' does not exist"),
        ('{"$ref": "#/anyOf/' + "9" * 5000 + '", "anyOf": [{"type": "integer"}]}', "Failed to parse array index"),
    ],
)
def test_references_to_nothing_are_refused_in_llguidances_words(schema: str, explanation: str) -> None:
    with pytest.raises(ValidationError, match=explanation):
        _compiler().compile(Grammar.json_schema(schema))


@pytest.mark.parametrize(
    ("definitions", "answer"),
    [
        ({"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "integer"}]}}, "5"),
        ({"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "integer"}]}}, "5"),
        ({"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}, "[[]]"),
        ({"a": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/a"}}]}}, "[[]]"),
        ({"a": {"$ref": "#b"}, "b": {"$anchor": "b", "type": "object"}}, "{}"),
    ],
)
def test_schemas_that_refer_to_themselves_and_to_more_hold_an_answer(definitions: dict[str, Any], answer: str) -> None:
    grammar = Grammar.json_schema(json.dumps({"$ref": "#/$defs/a", "$defs": definitions}))
    assert _takes(grammar, answer)
    assert not _takes(grammar, "true")


@pytest.mark.parametrize(
    ("bounds", "number", "taken"),
    [
        ({"minimum": -(2**63), "maximum": 2**63 - 1}, 7, True),
        ({"minimum": -(2**63), "maximum": 2**63 - 1}, 2**63 - 1, True),
        ({"minimum": 0, "maximum": 2**64 - 1}, 2**62, True),
        ({"minimum": -1e400, "maximum": 1e400}, -7, True),
        ({"minimum": 0, "maximum": 9999999999999999}, 9999999999999998, True),
        ({"minimum": 0, "maximum": 9999999999999999}, 10**16, False),
        ({"minimum": 2**53 + 1, "maximum": 2**53 + 9}, 2**53, False),
        ({"minimum": 2**53 + 1, "maximum": 2**53 + 9}, 2**53 + 2, True),
        ({"exclusiveMinimum": 2**60, "maximum": 2**61}, 2**60, False),
        ({"exclusiveMaximum": 2**60, "minimum": 0}, 2**60, False),
        ({"exclusiveMaximum": 2**60, "minimum": 0}, 2**59, True),
    ],
)
def test_bounds_that_no_float_holds_let_nothing_pass_beyond_them(
    bounds: dict[str, float], number: int, taken: bool
) -> None:
    assert _takes(Grammar.json_schema(json.dumps({"type": "integer", **bounds})), str(number)) is taken


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"child": {"$ref": "#"}}},
        {"anyOf": [{"$ref": "#/anyOf/1"}, {"type": "integer"}]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"type": "integer"}}},
        {"properties": {"const": {"type": "integer"}, "minimum": {"type": "integer", "maximum": 2**60}}},
        {"type": "integer", "default": 2**60, "examples": [{"const": 2**60}]},
        {"enum": [2**53, -(2**53), 0.5, True]},
    ],
)
def test_what_only_looks_like_a_circle_or_a_large_number_is_accepted(schema: dict[str, Any]) -> None:
    assert _compiler().compile(Grammar.json_schema(json.dumps(schema)))


def test_of_a_grammar_put_together_the_part_at_fault_is_named() -> None:
    fine, wrong = Grammar.json_schema("{}", "tools[0]"), Grammar.json_schema('{"type": "nonsense"}', "tools[1]")
    whole = Grammar.json_schema('{"anyOf": [{"type": "nonsense"}]}', "tools", (fine, wrong))
    with pytest.raises(ValidationError) as caught:
        _compiler().compile(whole)
    assert caught.value.message == "tools[1]: the JSON schema cannot be used: Invalid type: nonsense"
    assert [problem["param"] for problem in caught.value.detail["problems"]] == ["tools[1]"]


TREE = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "parts": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["value", "parts"],
}
COPIED = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/x"}, "b": {"$ref": "#/properties/a"}},
    "required": ["a", "b"],
    "$defs": {"x": {"enum": ["left", "right"]}},
}
TOOLS = {"tree": TREE, "copied": COPIED}


@pytest.mark.parametrize(
    ("call", "taken"),
    [
        ({"name": "tree", "arguments": {"value": 1, "parts": [{"value": 2, "parts": []}]}}, True),
        ({"name": "tree", "arguments": {"value": 1, "parts": [{"name": "tree", "arguments": {}}]}}, False),
        ({"name": "copied", "arguments": {"a": "left", "b": "right"}}, True),
        ({"name": "copied", "arguments": {"a": "left", "b": "up"}}, False),
        ({"name": "copied", "arguments": {"value": 1, "parts": []}}, False),
    ],
)
def test_references_of_several_tools_stay_within_each(call: dict[str, Any], taken: bool) -> None:
    tools = [ToolParam(function=FunctionDefinition(name=name, parameters=schema)) for name, schema in TOOLS.items()]
    forced = forced_call(tools, "required")
    assert forced is not None
    assert _takes(forced.grammar, json.dumps(call)) is taken
